"""The rates of this machine that a benchmark is held against, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from plantops.bench.record import dtype_name
from plantops.bench.timing import Call
from plantops.bench.work import Ceilings
from plantops.ops._precision import of_convolutions

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
CONVOLUTION = (32, 256, 16)
"""Batch, channels, height and width of the 3x3 convolution that is tried on a CPU, too."""
SAMPLES = 7
Clock = Callable[[], float]


def arithmetic(device: torch.device, dtype: torch.dtype, flag: Callable[[], str] = of_convolutions) -> str:
    """The name of the arithmetic that torch's own kernels use for a dtype: "tf32" for float32 on CUDA where torch's
    flag, that of convolutions or of matrix products, allows it."""
    tf32 = device.type == "cuda" and dtype == torch.float32 and flag() == "tf32"
    return "tf32" if tf32 else dtype_name(dtype)


def measure_ceilings(
    device: torch.device,
    arithmetics: Iterable[str],
    *,
    clock: Clock = time.perf_counter,
    copy_bytes: int | None = None,
    size: int | None = None,
) -> Ceilings:
    """The best copy bandwidth (bytes read plus written) of a few tries, and for each arithmetic the best rate.

    That of a square matrix product; on a CPU also that of a wide convolution, which on some processors is twice as
    fast (the libraries choose different instructions there).

    Args:
        device: where.
        arithmetics: "float32", "tf32", "bfloat16", "float16", "float64".
        clock: seconds, on a CPU.
        copy_bytes, size: of the copied buffer and of the matrices; default: much larger than the caches.
    """
    copy_bytes = copy_bytes or COPY_BYTES[device.type]
    size = size or MATMUL_SIZE[device.type]
    copy = 2 * copy_bytes / _copy_seconds(copy_bytes, device, clock)
    rates = {}
    for name in dict.fromkeys(arithmetics):
        rates[name] = 2 * size**3 / _matmul_seconds(name, size, device, clock)
        if device.type == "cpu":
            rates[name] = max(rates[name], _convolution_rate(getattr(torch, name), clock))
    return Ceilings(copy, rates)


def _copy_seconds(size: int, device: torch.device, clock: Clock) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _least_seconds(lambda: target.copy_(source), device, clock)


def _matmul_seconds(name: str, size: int, device: torch.device, clock: Clock) -> float:
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    left, right = (_random((size, size), device, dtype, seed) for seed in range(2))
    result = torch.empty_like(left)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        return _least_seconds(lambda: torch.mm(left, right, out=result), device, clock)
    finally:
        torch.set_float32_matmul_precision(before)


def _convolution_rate(dtype: torch.dtype, clock: Clock) -> float:
    batch, channels, size = CONVOLUTION
    cpu = torch.device("cpu")
    x = _random((batch, channels, size, size), cpu, dtype, 0).contiguous(memory_format=torch.channels_last)
    weight = _random((channels, channels, 3, 3), cpu, dtype, 1).contiguous(memory_format=torch.channels_last)
    flops = 2 * batch * size**2 * 9 * channels**2
    return flops / _least_seconds(lambda: F.conv2d(x, weight, padding=1), cpu, clock)


def _random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random numbers: on zeros a product can be faster than on data."""
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)


def _least_seconds(call: Call, device: torch.device, clock: Clock) -> float:
    call()
    return min(_events(call) if device.type == "cuda" else _clocked(call, clock) for _ in range(SAMPLES))


def _clocked(call: Call, clock: Clock) -> float:
    begin = clock()
    call()
    return clock() - begin


def _events(call: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3
