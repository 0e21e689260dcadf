"""What impl="auto" stands for on a CUDA device: the fastest implementation at the nearest measured shape.

The measurements are data: one JSON file for each GPU architecture, ``plantops/data/tuned/sm_90.json`` and the like,
shipped with the package, and files of the same names that ``plantops bench --tune`` writes for shapes of the user's
own, in the folder named by the environment variable PLANTOPS_TUNED (default: ~/.cache/plantops/tuned). A file:

    {"machine": {...}, "rule": [{"op": "kl_div_logits", "traits": ["bfloat16"], "features": [16384, 4096],
                                 "impl": "triton", "ms": {"triton": ..., "aten": ...}}, ...]}

Traits (dtype, layout, ...) must be equal; a shape belongs to the class of the nearest row whose features all lie within
a factor of four of its own. Where there is no such row, ATen computes. Nothing is measured here.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

import plantops
from plantops.ops import _eager

SHIPPED = Path(plantops.__file__).parent / "data" / "tuned"
FOLDER = "PLANTOPS_TUNED"
REACH = 2.0
"""Octaves by which a feature of a row may differ."""

Traits = tuple[str, ...]
Features = tuple[int, ...]
Key = tuple[Traits, Features]
Table = dict[tuple[str, Traits], dict[Features, str]]


def own_folder() -> Path:
    """Where the user's own tables lie."""
    return Path(os.environ.get(FOLDER) or "~/.cache/plantops/tuned").expanduser()


@cache
def architecture(index: int) -> str:
    """``sm_90`` of a GPU of compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


@cache
def table(name: str) -> Table:
    """The rows for an architecture; the user's own take the place of shipped ones with the same traits and features."""
    found: Table = {}
    for folder in (SHIPPED, own_folder()):
        path = folder / f"{name}.json"
        try:
            rows = json.loads(path.read_text())["rule"] if path.exists() else []
            for row in rows:
                key = (str(row["op"]), tuple(map(str, row["traits"])))
                found.setdefault(key, {})[tuple(map(int, row["features"]))] = str(row["impl"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"plantops: {path} is no table of measurements ({error!r}) and is left out", stacklevel=2)
    return found


def nearest(rows: Iterable[tuple[Features, str]], features: Features) -> str | None:
    """The implementation of the nearest row; None where none is within reach in every feature."""
    best, least = None, math.inf
    for measured, impl in rows:
        if len(measured) != len(features):
            continue
        octaves = [abs(math.log2((x + 1) / (y + 1))) for x, y in zip(measured, features, strict=True)]
        distance = sum(octave**2 for octave in octaves)
        if max(octaves, default=0.0) <= REACH and distance < least:
            best, least = impl, distance
    return best


@lru_cache(maxsize=4096)
def choose(stem: str, name: str, traits: Traits, features: Features) -> str:
    """The implementation of op `stem` on architecture `name`: the nearest row's, else "aten"."""
    rows = table(name).get((stem, traits), {})
    return nearest(rows.items(), features) or "aten"


def forget() -> None:
    """Reads the tables again at the next call."""
    table.cache_clear()
    choose.cache_clear()
    _eager.forget_choices()


def dtype_trait(tensor: torch.Tensor) -> str:
    """``float32`` of a float32 tensor."""
    return str(tensor.dtype).removeprefix("torch.")


def of_rows(logits: torch.Tensor, *_: Any) -> Key:
    """The key of an op over rows of logits: its dtype; rows and classes."""
    classes = logits.shape[-1]
    return (dtype_trait(logits),), (logits.numel() // max(1, classes), classes)


def of_rows_backward(grad: torch.Tensor, logits: torch.Tensor, *_: Any) -> Key:
    """The same for a backward, whose first argument is the loss's gradient."""
    return of_rows(logits)
