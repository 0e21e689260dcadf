"""Timing: variants run in turn, and quantiles of the seconds that one call took.

Variants are interleaved (one sample of each per round, in a rotating order), so a machine that slows down for a while
slows all of them, and their ratios stay honest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Call = Callable[[], Any]
Make = Callable[[], Call]
"""Prepares a call where and on the stream where it will run; what it prepares is not timed."""


@dataclass(frozen=True)
class Timing:
    """Quantiles of the seconds one call took, over `rounds` samples of `calls` calls each."""

    p20: float
    p50: float
    p80: float
    rounds: int
    calls: int

    def milliseconds(self) -> dict[str, float]:
        """The quantiles as columns of a table."""
        return {f"{name}_ms": round(getattr(self, name) * 1e3, 5) for name in ("p20", "p50", "p80")}


@dataclass(frozen=True)
class Sampler:
    """`sample()` returns the seconds of one call, as the mean of `calls` calls."""

    sample: Callable[[], float]
    calls: int = 1


class Timer(Protocol):
    """How a call is timed. `call` is "eager" or "graph", `cache` "warm" or "cold": columns of a table."""

    call: str
    cache: str

    def sampler(self, make: Make) -> Sampler:
        """Makes the call, warms it up, and returns what times it."""
        ...


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of sorted values, linear between neighbours.

    Raises:
        ValueError: no values.
    """
    if not ordered:
        raise ValueError("quantile of no values")
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summary(samples: Sequence[float], calls: int = 1) -> Timing:
    """p20, p50 and p80 of the samples."""
    ordered = sorted(samples)
    p20, p50, p80 = (quantile(ordered, q) for q in (0.2, 0.5, 0.8))
    return Timing(p20, p50, p80, len(ordered), calls)


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Every name once a round; each round begins one name later, so none always follows the same."""
    for turn in range(rounds):
        shift = turn % len(names) if names else 0
        yield from (*names[shift:], *names[:shift])


def interleave(samplers: Mapping[str, Sampler], rounds: int) -> dict[str, Timing]:
    """Take `rounds` samples of every sampler, in turn."""
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    for name in turns(list(samplers), rounds):
        samples[name].append(samplers[name].sample())
    return {name: summary(values, samplers[name].calls) for name, values in samples.items()}


class HostTimer:
    """A clock of the host around calls that have returned when their work is done, as on a CPU.

    Args:
        clock: seconds; `time.process_time` for one thread on a machine that is shared with others.
        min_seconds: a short call is repeated within a sample until about this long is measured.
        warmup: untimed calls before anything is measured; at least one, and no more once they took `LONG` seconds.
    """

    call, cache = "eager", "warm"
    LONG = 0.05
    """Of a call this long the caches' state at its start is a small part."""

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, min_seconds: float = 2e-3, warmup: int = 3
    ) -> None:
        self._clock, self._min_seconds, self._warmup = clock, min_seconds, warmup

    def sampler(self, make: Make) -> Sampler:
        call = make()
        begin = self._clock()
        for turn in range(self._warmup):
            call()
            if turn and self._clock() - begin > self.LONG:
                break
        seconds = self._seconds(call, 1)
        calls = max(1, int(self._min_seconds / max(seconds, 1e-7)))

        def sample() -> float:
            if seconds < self.LONG:
                call()  # untimed: memory and caches as this variant leaves them, not its predecessor
            return self._seconds(call, calls)

        return Sampler(sample, calls)

    def _seconds(self, call: Call, calls: int) -> float:
        begin = self._clock()
        for _ in range(calls):
            call()
        return (self._clock() - begin) / calls


def measure(
    variants: Mapping[str, Call],
    *,
    rounds: int = 25,
    min_seconds: float = 2e-3,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every variant with a clock of the host, interleaved; the arguments are those of `HostTimer`."""
    timer = HostTimer(clock, min_seconds, warmup)
    return interleave({name: timer.sampler(ready(call)) for name, call in variants.items()}, rounds)


def ready(call: Call) -> Make:
    """What makes a call that needs no preparation."""
    return lambda: call
