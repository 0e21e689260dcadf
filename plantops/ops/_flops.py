"""FLOP formulas of the ops, for `torch.utils.flop_counter.FlopCounterMode`.

That module imports Triton, which takes longer than all of this package: the formulas are registered when somebody has
imported it.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

COUNTER = "torch.utils.flop_counter"
Shape = tuple[int, ...]

_formulas: dict[Any, Callable[..., int]] = {}


def register(op: Any, formula: Callable[..., int]) -> None:
    """Let the counter count `op`, an OpOverloadPacket, by a formula over its arguments, with shapes for tensors."""
    _formulas[op] = formula
    counter = sys.modules.get(COUNTER)
    if counter is not None and hasattr(counter, "register_flop_formula"):
        _hand_over(counter)


def _hand_over(counter: Any) -> None:
    while _formulas:
        op, formula = _formulas.popitem()
        if op not in counter.flop_registry:
            counter.register_flop_formula(op)(formula)


def size(shape: Shape | None) -> int:
    """Number of elements of a tensor that may be missing."""
    return 0 if shape is None else prod(shape)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Hands the formulas over at the end of the import of torch's counter."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _hand_over(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if COUNTER not in sys.modules:
    sys.meta_path.insert(0, _WhenImported())
