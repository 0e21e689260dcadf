"""How long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """How long the current stage, and the whole search at most, will still take.

    A search has no known number of rounds, so there are two answers: for this stage, and (in a round, whose pace holds
    for later rounds too) for the case that all the rounds allowed are needed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.total = self.done = 0
        self.stage_total = self.stage_done = 0
        self._in_round = False
        self._began = clock()

    def start(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def stage(self, units: int, in_round: bool) -> None:
        self.done += max(0, self.stage_total - self.stage_done)  # epochs that were allowed but not needed
        self.stage_total, self.stage_done, self._in_round = units, 0, in_round
        self._began = self._clock()

    def units(self, count: int = 1) -> None:
        self.done += count
        self.stage_done += count

    def stage_seconds(self) -> float | None:
        """For the rest of this stage; None before its first epoch is done."""
        if self.stage_done == 0:
            return None
        return self._seconds_per_unit() * max(0, self.stage_total - self.stage_done)

    def most_seconds(self) -> float | None:
        """For everything that is still allowed; None where this stage says nothing about it."""
        if self.stage_done == 0 or not self._in_round:
            return None
        return self._seconds_per_unit() * max(0, self.total - self.done)

    def text(self) -> str:
        """Such as ``eta 2:10 (at most 21:40 in all)``; empty when nothing is known."""
        stage, most = self.stage_seconds(), self.most_seconds()
        if stage is None:
            return ""
        text = f"eta {duration(stage)}"
        return f"{text} (at most {duration(most)} in all)" if most is not None and most > stage else text

    def _seconds_per_unit(self) -> float:
        return (self._clock() - self._began) / self.stage_done


def duration(seconds: float) -> str:
    """``0:07``, ``2:10``, ``1:02:10``."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
