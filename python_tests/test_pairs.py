import itertools
import random

import pytest

from python_tests.pairs import covering

VALUES = {"impl": "abcd", "dtype": "xyz", "layout": "01", "pool": "mn"}


def product(names: list[str]) -> list[dict[str, str]]:
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(VALUES[name] for name in names))]


@pytest.mark.parametrize("seed", range(3))
def test_every_pair_of_values_meets(seed: int) -> None:
    tests = product(list(VALUES))
    random.Random(seed).shuffle(tests)
    tests = tests[:40]  # as where some cannot run
    kept = [tests[place] for place in covering(tests)]
    for one, other in itertools.combinations(VALUES, 2):
        assert {(t[one], t[other]) for t in kept} == {(t[one], t[other]) for t in tests}
    assert len(kept) <= 20  # 12 is the least


def test_less_than_three_parameters_are_kept_whole() -> None:
    for names in ([], ["impl"], ["impl", "dtype"]):
        tests = product(names)
        assert covering(tests) == set(range(len(tests)))
