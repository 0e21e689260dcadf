"""Quantiles, the order of samples, and what a timer makes of a clock."""

import pytest
import torch

from plantops.bench.timing import HostTimer, Sampler, Timing, interleave, measure, quantile, summary, turns


def test_quantiles_are_linear_between_neighbours():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert [quantile(values, q) for q in (0.0, 0.2, 0.5, 0.8, 1.0)] == pytest.approx([1.0, 1.8, 4.0, 9.6, 16.0])
    assert quantile([3.0], 0.8) == 3.0
    many = torch.rand(97, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort().values
    for q in (0.2, 0.5, 0.8):
        assert quantile(many.tolist(), q) == pytest.approx(torch.quantile(many, q).item(), rel=1e-12)


def test_no_samples_have_no_quantile():
    with pytest.raises(ValueError, match="no values"):
        summary([])


def test_turns_rotate():
    assert "".join(turns("abc", 4)) == "abcbcacababc"


def test_interleave_takes_samples_in_turn_and_keeps_them_apart():
    order, values = [], {"a": iter([1.0, 3.0, 2.0]), "b": iter([10.0, 30.0, 20.0])}

    def sample(name):
        order.append(name)
        return next(values[name])

    timings = interleave({name: Sampler(lambda name=name: sample(name), 5) for name in "ab"}, 3)
    assert "".join(order) == "abbaab"
    assert timings["a"] == Timing(pytest.approx(1.4), 2.0, pytest.approx(2.6), 3, 5)
    assert timings["b"].p50 == 20.0


class Clock:
    """A clock that only the calls move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_short_call_is_repeated_within_a_sample():
    clock, count = Clock(), 0

    def call():
        nonlocal count
        count += 1
        clock.now += seconds

    seconds = 2.0**-8
    timing = measure({"a": call}, rounds=4, min_seconds=2.0**-6, warmup=2, clock=clock)["a"]
    assert (timing.p20, timing.p50, timing.p80, timing.calls) == (seconds, seconds, seconds, 4)
    assert count == 2 + 1 + 4 * (1 + 4)  # warm-up, calibration, and in each round one untimed call and four timed
    assert timing.milliseconds() == {"p20_ms": 3.90625, "p50_ms": 3.90625, "p80_ms": 3.90625}

    count, seconds = 0, 1.0
    assert measure({"a": call}, rounds=4, warmup=5, clock=clock)["a"].p50 == 1.0
    assert count == 2 + 1 + 4  # a long call needs fewer


def test_what_prepares_a_call_is_not_timed():
    clock = Clock()

    def make():
        clock.now += 100.0

        def call():
            clock.now += 1.0

        return call

    assert HostTimer(clock, min_seconds=0.0).sampler(make).sample() == 1.0
