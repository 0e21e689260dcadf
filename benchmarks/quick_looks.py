"""Quick looks with pytest-benchmark, on this machine's CPU; not part of the test suite.

    python -m pytest benchmarks/quick_looks.py --benchmark-group-by=group [-k losses]

For figures to keep use ``plantops bench``: it interleaves the variants and counts the work.
"""

import pytest
import torch

from plantops.bench import registry
from plantops.bench.case import verified
from plantops.bench.runner import Settings

pytest.importorskip("pytest_benchmark")
SETTINGS = Settings(torch.device("cpu"), compiled=False)
CASES = [
    pytest.param(case, id=f"{name}-{case.name}")
    for name in registry.MODULES
    for case in registry.benchmark(name).cases(SETTINGS)
]


@pytest.fixture(scope="module", params=CASES)
def prepared(request):
    """A case and its variants that are right."""
    return request.param, {variant.name: variant for variant in verified(request.param.prepare())[0]}


@pytest.mark.parametrize("name", ["auto", "native", "aten", "eager", "split + cat", "ATen slice", "masked"])
def test_call(prepared, name, benchmark):
    case, variants = prepared
    if name not in variants:
        pytest.skip(f"{case.name} has no variant {name}")
    benchmark.group = case.name
    benchmark(variants[name].call)
