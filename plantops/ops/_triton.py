"""What the Triton implementations share: whether they can run, loading them late, and launching.

Triton itself is imported only by the files that hold kernels, and those only when one is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

INT32_ELEMENTS = 2**31


@cache
def installed() -> bool:
    """Whether there is a Triton to import."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton is told to run its kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes")


def why_not(device_type: str) -> str:
    """Why no Triton kernel runs on this kind of device, and what would change it; empty when one does."""
    if not installed():
        return "Triton is not installed. To get it: pip install triton"
    if device_type in ("cuda", "meta") or interpreted():
        return ""
    return (
        "Triton compiles for GPUs. Its slow interpreter runs on the CPU when TRITON_INTERPRET=1 is set in the "
        "environment before the first call"
    )


def late(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of `module`, which is imported at the first call."""

    @cache
    def function() -> Callable[..., Any]:
        return getattr(importlib.import_module(module), name)

    def call(*args: Any) -> Any:
        return function()(*args)

    return call


@dataclass(frozen=True)
class Launch:
    """A kernel with the grid, arguments and options that it was to be started with."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, int]


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches are collected instead of started: how the kernel report learns what is shipped, from meta tensors."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 3,
    max_registers: int | None = None,
    **constants: Any,
) -> None:
    """Starts `kernel` over `grid` on the device and current stream of its first tensor; none over an empty grid.

    With `max_registers` a thread may take as many. Without, the assembler may spill to let more programs run at once.
    """
    if 0 in grid:
        return
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if max_registers is not None:
        options["maxnreg"] = max_registers
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, args, constants, options))
        return
    device = next(a.device for a in args if isinstance(a, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **constants, **options)
    else:
        kernel[grid](*args, **constants, **options)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()


def needs_int64(*tensors: Tensor | None) -> bool:
    """Whether an element of one of the tensors lies 2^31 elements or more behind its first."""
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) >= INT32_ELEMENTS
        for t in tensors
        if t is not None and t.numel()
    )
