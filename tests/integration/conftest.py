"""Fixtures of the tests with real nodes."""

from __future__ import annotations

from tests.fronts import front

__all__ = ["front"]
