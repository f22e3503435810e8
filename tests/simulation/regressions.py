"""Seeds that found bugs.  Each is run for ever, though a later change may make something else of it: what a bug was
about has a test of its own beside the code that was wrong."""

from __future__ import annotations

REGRESSIONS: tuple[tuple[str, int, str], ...] = ()
"""Profile, seed, and what was wrong."""
