"""Which tests of many parameters the default tier keeps: of a product so many that each pair of values meets once."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import pytest


def covering(tests: Sequence[Mapping[str, Any]]) -> set[int]:
    """Places of few tests, given by their parameters, in which all pairs of values are that are in all of them.

    It is always the first of those that have most of what is missing; with less than three parameters it is all.
    """
    pairs = [set(itertools.combinations([(name, id(value)) for name, value in test.items()], 2)) for test in tests]
    if not any(pairs):
        return set(range(len(tests)))
    missing, kept = set().union(*pairs), set()
    while missing:
        best = max(range(len(tests)), key=lambda place: len(pairs[place] & missing))
        kept.add(best)
        missing -= pairs[best]
    return kept


def mostly_exhaustive(values: Iterable[Any], kept: Container[Any]) -> list[Any]:
    """Values for `parametrize`, those that are not to be kept marked `exhaustive`."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.exhaustive) for value in values]
