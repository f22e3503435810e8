"""Seeds that found bugs.  Each is run for ever, though a later change may make something else of it: what a bug was
about has a test of its own beside the code that was wrong."""

from __future__ import annotations

REGRESSIONS: tuple[tuple[str, int, str], ...] = (
    ("crashes", 7, "clients stayed with a cluster that had lost all memory"),
    ("available", 491, "the same, where half of its ring was gone for good"),
    ("available", 1033, "the same, where most of it was"),
    ("available", 2592, "a simulated task went on in the context of another, and computed what that was computing"),
    (
        "linearizable",
        3668,
        "with clocks far off slots were started over below what was acknowledged, beyond the promise",
    ),
    ("linearizable", 1469, "a change that failed left a promise far ahead of all clocks"),
    ("crashes", 10, "a counter outlived a clear that it overlapped"),
    ("changes", 6379, "clients knew a later ring than all nodes: those that had agreed on it had lost their memory"),
    ("changes", 75, "a newcomer asked members that had left"),
    ("changes", 108, "who was left of a cluster that others began anew waited for ever"),
    ("changes", 2061, "a doubt was forgotten when a write was made again"),
    ("changes", 2288, "the same, of one of many keys"),
    ("changes", 100381, "the last owner lost its memory, and took what is older than what it had acknowledged"),
    ("changes", 100440, "a newcomer did not ask the only member left, which was down when it came"),
    ("changes", 100698, "the same, of two newcomers"),
    ("changes", 101633, "the same"),
    ("changes", 100360, "half of a cluster waited for ever for the half that had begun anew and grown"),
    ("changes", 100756, "a newcomer took its first node, of another cluster by then, for one that was there"),
    ("linearizable", 111421, "a caller got what another had found before it was changed"),
    ("linearizable", 0, "a clock that was set right kept its client from writing"),
)
"""Profile, seed, and what was wrong."""
