"""The rates of this machine that a benchmark is held against, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch

from plantops.bench.record import dtype_name
from plantops.bench.timing import Call, quantile
from plantops.bench.work import Ceilings

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
SAMPLES = 7


def arithmetic(device: torch.device, dtype: torch.dtype) -> str:
    """The name of the arithmetic that torch's own kernels use for a dtype: "tf32" for float32 convolutions on CUDA
    where torch's flag allows it."""
    if device.type == "cuda" and dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
        return "tf32"
    return dtype_name(dtype)


def measure_ceilings(
    device: torch.device, arithmetics: Iterable[str], *, copy_bytes: int | None = None, size: int | None = None
) -> Ceilings:
    """Copy bandwidth (bytes read plus written) and the rate of a square matrix product for each arithmetic.

    Args:
        device: where.
        arithmetics: "float32", "tf32", "bfloat16", "float16", "float64".
        copy_bytes, size: of the copied buffer and of the matrices; default: much larger than the caches.
    """
    copy_bytes = copy_bytes or COPY_BYTES[device.type]
    size = size or MATMUL_SIZE[device.type]
    copy = 2 * copy_bytes / _copy_seconds(copy_bytes, device)
    rates = {name: 2 * size**3 / _matmul_seconds(name, size, device) for name in dict.fromkeys(arithmetics)}
    return Ceilings(copy, rates)


def _copy_seconds(size: int, device: torch.device) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _median_seconds(lambda: target.copy_(source), device)


def _matmul_seconds(name: str, size: int, device: torch.device) -> float:
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        return _median_seconds(lambda: torch.mm(left, right, out=result), device)
    finally:
        torch.set_float32_matmul_precision(before)


def _median_seconds(call: Call, device: torch.device) -> float:
    clock = _events if device.type == "cuda" else _clock
    call()
    return quantile(sorted(clock(call) for _ in range(SAMPLES)), 0.5)


def _clock(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _events(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3
