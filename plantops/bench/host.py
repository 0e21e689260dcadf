"""What a call costs the host: microseconds over an empty autograd function with the same arguments.

The tensors are so small that hardly anything is computed. On a GPU a call returns when its kernels are queued: the
device is idle before every sample, and a sample queues less than the queue holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plantops.bench.live import implementations
from plantops.bench.record import Row, environment
from plantops.bench.runner import Settings
from plantops.bench.timing import Call, HostTimer, Timing, interleave, ready
from plantops.functional import distillation_loss, kl_div_logits, planted_conv2d

EMPTY = "empty function"
FORWARD, BOTH = "forward", "forward + backward"
ASKED = {FORWARD: 4.0, BOTH: 12.0}
"""Microseconds over the empty function that `native` on a GPU is held to."""
COLUMNS = ("op", "device", "direction", "variant", "p20_us", "p50_us", "p80_us", "over_empty_us", "asked_us")
FULL_QUEUE = 1e-3
"""Seconds of calls in a sample: the host is never held up by what it has queued."""


class CallTimer(HostTimer):
    """A clock of the host around calls that may return before the device is done."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        super().__init__(clock, FULL_QUEUE, warmup=20)
        self._wait: Callable[[], Any] = (
            functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
        )

    def _seconds(self, call: Call, calls: int) -> float:
        self._wait()
        return super()._seconds(call, calls)


class Empty(torch.autograd.Function):
    """Keeps its tensors and computes nothing: a result and gradients that are there already."""

    @staticmethod
    def forward(ctx: Any, results: Tensor, gradients: Sequence[Tensor | None], *arguments: Any) -> Tensor:
        ctx.save_for_backward(*(argument for argument in arguments if isinstance(argument, Tensor)))
        ctx.gradients, ctx.rest = gradients, arguments
        return results.view_as(results)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        assert len(ctx.saved_tensors) > 0
        return None, None, *ctx.gradients


@dataclass(frozen=True)
class Subject:
    """An op with its arguments as the autograd function gets them, and how it is called with an implementation."""

    op: str
    call: Callable[[str], Tensor]
    arguments: tuple[Any, ...]

    @property
    def trained(self) -> list[Tensor]:
        return [a for a in self.arguments if isinstance(a, Tensor) and a.requires_grad]

    def forwards(self, impls: Sequence[str]) -> dict[str, Callable[[], Tensor]]:
        """The empty function, and every implementation."""
        result = self.call("aten").detach()
        gradients = [torch.zeros_like(a) if isinstance(a, Tensor) and a.requires_grad else None for a in self.arguments]
        forwards = {EMPTY: lambda: Empty.apply(result, gradients, *self.arguments)}
        return forwards | {impl: functools.partial(self.call, impl) for impl in impls}


def subjects(device: torch.device) -> Iterator[Subject]:
    """The ops on tensors of a few elements."""

    def tensor(*shape: int, trained: bool = False) -> Tensor:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return values.to(device).requires_grad_(trained)

    student, teacher = tensor(4, 10, trained=True), tensor(4, 10)
    target = torch.zeros(4, dtype=torch.int64, device=device)
    yield Subject(
        "kl_div_logits",
        lambda impl: kl_div_logits(student, teacher, 2.0, impl=impl),
        (student, teacher, 2.0, "batchmean", "impl"),
    )
    yield Subject(
        "distillation_loss",
        lambda impl: distillation_loss(student, teacher, target, alpha=0.9, temperature=2.0, impl=impl),
        (student, teacher, target, 0.9, 2.0, 0.0, "mean", "impl"),
    )
    x, weight, bias = tensor(1, 6, 4, 4, trained=True), tensor(4, 4, 3, 3), tensor(4)
    out, into, bias_out = tensor(2, 6, 3, 3, trained=True), tensor(4, 2, 3, 3, trained=True), tensor(2, trained=True)
    needs, one = (True, True, True, True, False), (1, 1)
    yield Subject(
        "planted_conv2d",
        lambda impl: planted_conv2d(x, weight, out, into, bias, bias_out, padding=1, impl=impl),
        (x, weight, out, into, bias, bias_out, None, needs, one, one, one, 1, 4, "none", 1, "full", "impl"),
    )


def rows(settings: Settings) -> list[Row]:
    """A row for each op, direction and variant."""
    timer = CallTimer(settings.device, settings.clock())
    about = {**environment(settings.device), "clock": "processor" if settings.processor_time else "wall"}
    found: list[Row] = []
    for subject in subjects(settings.device):
        live, _ = implementations(subject.op, settings)
        forwards = subject.forwards(live)
        upstream = torch.ones_like(forwards[EMPTY]())

        def both(forward: Callable[[], Tensor], trained: list[Tensor], upstream: Tensor = upstream) -> Call:
            return lambda: torch.autograd.grad(forward(), trained, upstream)

        for direction in (FORWARD, BOTH):
            calls: Mapping[str, Call] = forwards
            if direction == BOTH:
                calls = {name: both(forward, subject.trained) for name, forward in forwards.items()}
            samplers = {name: timer.sampler(ready(call)) for name, call in calls.items()}
            timings = interleave(samplers, settings.rounds)
            found += [{**_row(subject.op, settings.device.type, direction, name, timings), **about} for name in timings]
    return found


def _row(op: str, device: str, direction: str, variant: str, timings: Mapping[str, Timing]) -> Row:
    timing = timings[variant]
    row: Row = {"op": op, "device": device, "direction": direction, "variant": variant}
    row |= {f"{name}_us": round(getattr(timing, name) * 1e6, 2) for name in ("p20", "p50", "p80")}
    row["over_empty_us"] = round((timing.p50 - timings[EMPTY].p50) * 1e6, 2)
    row["asked_us"] = ASKED[direction] if variant == "native" and device == "cuda" else ""
    return row | {"rounds": timing.rounds, "calls": timing.calls}
