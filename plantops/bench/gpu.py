"""Timing, memory and launches on a CUDA device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from plantops.bench.timing import Call, Make, Sampler

FLUSH = 4
"""The buffer read before every sample, in sizes of the L2 cache."""


class GpuTimer:
    """Events around one call whose inputs are not in the L2 cache.

    Before every sample a buffer larger than the L2 cache is read (reading leaves no lines to be written back while
    the call runs). ``graph=True`` replays the call as a captured CUDA graph, queued behind that read: the time of the
    device, without the host's. ``graph=False`` makes the call itself on an idle device: from the first launch to the
    end of the last kernel, what Python and the launches cost included.
    """

    cache = "cold"

    def __init__(self, device: torch.device, graph: bool, warmup: int = 3) -> None:
        self.call = "graph" if graph else "eager"
        self._graph, self._warmup = graph, warmup
        self._stream = torch.cuda.Stream(device)
        # One pool for all graphs: none reads what another run of it, or another graph, has left.
        self._pool = torch.cuda.graph_pool_handle()
        size = torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.zeros(max(1, FLUSH * size // 4), device=device)
        self._sink = torch.empty((), device=device)

    def _flush(self) -> None:
        torch.amax(self._buffer, 0, out=self._sink)

    def sampler(self, make: Make) -> Sampler:
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            call = make()
            for _ in range(self._warmup):
                call()
            stream.synchronize()
            if self._graph:
                call = self._captured(call)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def sample() -> float:
            with torch.cuda.stream(stream):
                self._flush()
                if not self._graph:
                    stream.synchronize()
                begin.record(stream)
                call()
                end.record(stream)
                end.synchronize()
            return begin.elapsed_time(end) * 1e-3

        return Sampler(sample)

    def _captured(self, call: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                call()
        except RuntimeError:
            self._forget_pool()
            raise
        return graph.replay

    def _forget_pool(self) -> None:
        """A capture that was broken off (by a call that waits for the device) leaves the allocator recording to its
        pool, and every later capture into it would fail."""
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()


def launches(call: Call) -> int:
    """Kernels, copies and fills that one call puts on the device."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return count_launches(profile.events() or ())


def count_launches(events: Iterable[Any]) -> int:
    """The events that are work of the device, not ranges that a person has named."""
    cuda = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == cuda and not getattr(event, "is_user_annotation", False) for event in events)


def allocated_by(device: torch.device, forward: Any, source: Tensor) -> int:
    """Bytes of device memory that a forward keeps alive: the allocator's delta without the output.

    The input is made for this call and dropped after it, so it counts if the backward needs it and only then.
    """
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    output = forward(source.clone())
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device) - before - _rounded(output.untyped_storage().nbytes())


def _rounded(size: int) -> int:
    """The allocator hands out blocks of whole 512 bytes."""
    return -(-size // 512) * 512
