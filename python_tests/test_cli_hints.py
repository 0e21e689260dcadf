"""What the command line says of the widths that a search ended with."""

import pytest

from plantops._cli.running import width_hint


def record(role: str, **widths: int) -> dict:
    return {"role": role, "name": f"{role}-1", "widths": widths}


@pytest.mark.parametrize(
    ("widths", "named"),
    [
        ({"conv1": 65, "conv2": 64}, ["conv1 of planted-1 (65; 64 or 68)"]),
        ({"conv1": 67}, ["conv1 of planted-1 (67; 64 or 68)"]),
        (
            {"conv1": 33, "conv2": 34, "conv3": 35, "conv4": 37, "conv5": 38},
            ["conv3 of planted-1 (35; 32 or 36) and 2"],
        ),
    ],
)
def test_widths_past_a_step_are_named_with_those_beside_them(widths: dict, named: list[str]):
    hint = width_hint([record("teacher", conv1=33), record("planted", **widths)])
    assert all(name in hint for name in named)
    assert "teacher" not in hint
    assert "conv2 of planted-1 (64" not in hint


@pytest.mark.parametrize("widths", [{"conv1": 64, "conv2": 68}, {"conv1": 5, "conv2": 31}])
def test_widths_that_cost_nothing_are_not(widths: dict):
    assert width_hint([record("planted", **widths)]) is None
