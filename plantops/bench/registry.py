"""The benchmarks by name. To add one: a module with ``cases(settings)`` and ``SHAPE_HELP``, and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from plantops.bench.case import Case
from plantops.bench.runner import Settings


@dataclass(frozen=True)
class Benchmark:
    """What a module offers.

    Attributes:
        cases: the cases of some settings; ValueError for a shape of the user's own that it cannot read.
        shape_help: the form of such a shape.
        about: one line.
    """

    cases: Callable[[Settings], list[Case]]
    shape_help: str
    about: str


MODULES = {
    "losses": "plantops.bench.losses",
    "planted_conv2d": "plantops.bench.planted_conv2d",
    "planted_linear": "plantops.bench.planted_linear",
    "group_sparsity": "plantops.bench.group_sparsity",
    "qsne_kl": "plantops.bench.qsne_kl",
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; only its module is imported.

    Raises:
        ValueError: no such benchmark.
    """
    if name not in MODULES:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(MODULES)}.")
    module = importlib.import_module(MODULES[name])
    about = (module.__doc__ or "").splitlines()[0]
    return Benchmark(module.cases, module.SHAPE_HELP, about)
