"""plantops: plant channels into trained networks, with everything trained so far frozen.

What is asked for is imported when it is asked for, so the command line's help needs no torch. The ops are registered
(``torch.ops.plantops``) as soon as both packages are imported, in either order.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from plantops.errors import PlantopsError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from plantops import functional, models, nn
    from plantops.graph import Group, Plan, Site
    from plantops.planting import Planter, PlanterConfig, PlanterResult, carry_state, load, save, trace
    from plantops.planting.fold import fold_batch_norm
    from plantops.planting.merge import merge
    from plantops.planting.plant import plant
    from plantops.pruning import PruneResult, prune

__all__ = [
    "Group",
    "Plan",
    "Planter",
    "PlanterConfig",
    "PlanterResult",
    "PlantopsError",
    "PruneResult",
    "Site",
    "carry_state",
    "fold_batch_norm",
    "functional",
    "load",
    "merge",
    "models",
    "nn",
    "plant",
    "prune",
    "save",
    "trace",
]

_HOMES = {
    **dict.fromkeys(("Group", "Plan", "Site"), "graph"),
    **dict.fromkeys(("PruneResult", "prune"), "pruning"),
    **dict.fromkeys(
        (
            "Planter",
            "PlanterConfig",
            "PlanterResult",
            "carry_state",
            "fold_batch_norm",
            "load",
            "merge",
            "plant",
            "save",
            "trace",
        ),
        "planting",
    ),
}
"""Which part of the package has a public name."""
_PARTS = ("bench", "embed", "functional", "graph", "models", "nn", "ops", "planting", "pruning", "train")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"plantops.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'plantops' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"plantops.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})


class _Registration(importlib.abc.MetaPathFinder):
    """Registers the ops as soon as torch and a part of this package are imported, and then takes itself away.

    That is at the end of an import, never inside one of a part of this package, which would be left half done.
    """

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch" and not name.startswith("plantops."):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path and "torch" in sys.modules and not _importing(name):
                sys.meta_path.remove(self)
                importlib.import_module("plantops.functional")

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def _importing(ended: str) -> bool:
    """Whether torch or a part of the package is being imported, besides ``ended``."""
    parts = [module for name, module in list(sys.modules.items()) if name.startswith("plantops.") and name != ended]
    parts += [sys.modules["torch"]] if ended != "torch" else []
    return any(getattr(getattr(part, "__spec__", None), "_initializing", False) for part in parts)


if "torch" in sys.modules:
    importlib.import_module("plantops.functional")
else:
    sys.meta_path.insert(0, _Registration())
