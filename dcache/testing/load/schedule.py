"""When callers begin their operations, and when they end.

In a closed loop a caller begins when it has ended the operation before.  At a fixed rate every operation has a moment
at which it is to begin, whatever became of those before; its time counts from then.  So a cache that stalls makes all
the operations slow that would have begun meanwhile, and not just the one that each caller was at (the fault known as
"coordinated omission", Gil Tene).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count


class Schedule:
    """For `lanes` callers, each of which begins `width` operations at a time.

    Ends after `seconds`, or once `operations` have begun, or when it is stopped.  `rate` is in operations per second,
    over all lanes; None is a closed loop.  `clock` is in nanoseconds.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        lanes: int,
        *,
        width: int = 1,
        seconds: float | None = None,
        operations: int | None = None,
        rate: float | None = None,
    ) -> None:
        self._clock, self._lanes, self._width = clock, lanes, width
        self._operations = math.inf if operations is None else operations
        self._taken = count(0, width)
        self._interval = None if rate is None else lanes * width * 1e9 / rate
        self._begin = clock()
        self._end = math.inf if seconds is None else self._begin + seconds * 1e9
        self.stopped = False
        self.behind = 0
        """Operations whose moment came before the end, and which did not begin."""

    def stop(self) -> None:
        self.stopped = True
        self._end = min(self._end, self._clock())

    def starts(self, lane: int) -> Iterator[tuple[int | None, int]]:
        """For each time that a lane is to begin: when (None: at once), and how many operations."""
        for intended in self._moments(lane):
            if self._clock() >= self._end:
                self._left_behind(intended)
                return
            left = self._operations - next(self._taken)
            if left <= 0 or (intended is not None and intended >= self._end):
                return
            yield intended, min(self._width, int(min(left, self._width)))

    def _moments(self, lane: int) -> Iterator[int | None]:
        if self._interval is None:
            while True:
                yield None
        first = self._begin + self._interval * lane / self._lanes
        for number in count():
            yield int(first + number * self._interval)

    def _left_behind(self, intended: int | None) -> None:
        if intended is not None and self._interval is not None and intended < self._end:
            left = math.ceil((self._end - intended) / self._interval) * self._width
            self.behind += int(min(left, max(0, self._operations)))
