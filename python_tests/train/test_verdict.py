"""The sentence that says what a search was worth."""

import math
from typing import Any

import pytest

from plantops.train.report.verdict import found, rivals, verdict


def network(role: str, name: str, parameters: int, accuracy: float) -> dict[str, Any]:
    return {"role": role, "name": name, "parameters": parameters, "test_accuracy": accuracy}


PLANTED = network("planted", "planted", 4000, 0.90)
SMALL, ABOVE, LARGE = (
    network("uniform", f"uniform-{n}", p, a) for n, p, a in ((4, 2000, 0.5), (7, 4200, 0.8), (9, 6000, 0.95))
)
SCRATCH, PRUNED = network("control", "scratch", 4000, 0.905), network("control", "pruned", 3900, 0.97)


def test_rivals_are_the_next_uniform_network_and_the_controls() -> None:
    assert rivals([PLANTED, LARGE, SMALL, ABOVE, SCRATCH, PRUNED]) == [ABOVE, SCRATCH, PRUNED]
    assert rivals([PLANTED, SMALL]) == [SMALL]
    assert rivals([SMALL, ABOVE]) == []


def test_the_last_training_is_what_is_handed_out() -> None:
    tuned, anew = network("finetuned", "finetuned", 4000, 0.9), network("retrained", "retrained", 4000, 0.9)
    assert found([PLANTED, anew, tuned]) is anew
    assert found([PLANTED, tuned]) is tuned
    assert found([SMALL]) is None


def test_it_beats_loses_and_is_level_by_two_standard_errors() -> None:
    text = verdict([PLANTED, ABOVE, SCRATCH, PRUNED], 1000)
    assert text is not None
    assert "beats uniform-7 (4,200, 80.00 %, +10.00 points)" in text
    assert "is level with the same widths from scratch (4,000, 90.50 %, -0.50 points)" in text
    assert "loses to a wider network pruned to its size (3,900, 97.00 %, -7.00 points)" in text
    widest = 100 * 2 * math.sqrt((0.9 * 0.1 + 0.8 * 0.2) / 1000)
    assert f"clear from {widest:.2f} points on" in text
    assert "1,000 images" in text


@pytest.mark.parametrize("samples", [0, 1000])
def test_without_rivals_there_is_no_verdict(samples: int) -> None:
    assert verdict([PLANTED], samples) is None
    assert verdict([SMALL, ABOVE], samples) is None
    assert (verdict([PLANTED, ABOVE], samples) is None) == (samples == 0)
