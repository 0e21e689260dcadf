"""Which tests of a product of parameters the default tier keeps: so many that each pair of values meets once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


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
