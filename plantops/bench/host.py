"""What a call costs the host: microseconds over an empty autograd function with the same arguments.

Beside our implementations stand the ways of plain PyTorch that the other benchmarks hold them against. The tensors are
so small that hardly anything is computed. On a GPU a call returns when its kernels are queued: the device is idle
before every sample, and a sample queues less than the queue holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plantops.bench import conv_peers, losses
from plantops.bench import planted_linear as linear_bench
from plantops.bench.live import implementations
from plantops.bench.record import Row, environment
from plantops.bench.runner import Settings
from plantops.bench.timing import Call, HostTimer, Timing, interleave, ready
from plantops.bench.work import Convolution
from plantops.functional import planted_conv2d, planted_linear

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
class Way:
    """A forward and what it trains."""

    forward: Callable[[], Tensor]
    trained: Sequence[Tensor]


@dataclass(frozen=True)
class Subject:
    """An op with its arguments as the autograd function gets them, how it is called with an implementation, and its
    peers in plain PyTorch."""

    op: str
    call: Callable[[str], Tensor]
    arguments: tuple[Any, ...]
    peers: Mapping[str, Way]

    @property
    def trained(self) -> list[Tensor]:
        return [a for a in self.arguments if isinstance(a, Tensor) and a.requires_grad]

    def ways(self, impls: Sequence[str]) -> dict[str, Way]:
        """The empty function, every implementation, and the peers."""
        result = self.call("aten").detach()
        gradients = [torch.zeros_like(a) if isinstance(a, Tensor) and a.requires_grad else None for a in self.arguments]
        forwards = {EMPTY: lambda: Empty.apply(result, gradients, *self.arguments)}
        forwards |= {impl: functools.partial(self.call, impl) for impl in impls}
        return {name: Way(forward, self.trained) for name, forward in forwards.items()} | dict(self.peers)


def subjects(device: torch.device) -> Iterator[Subject]:
    """The ops on tensors of a few elements, with their peers."""

    def tensor(*shape: int, trained: bool = False) -> Tensor:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return values.to(device).requires_grad_(trained)

    tensors = (tensor(4, 10, trained=True), tensor(4, 10), torch.zeros(4, dtype=torch.int64, device=device))
    empty = {losses.KL: (1.0, "batchmean"), losses.DISTILLATION: (losses.ALPHA, losses.TEMPERATURE, 0.0, "mean")}
    eager = {losses.KL: losses.torch_kl, losses.DISTILLATION: losses.torch_distillation}
    for op, numbers in empty.items():
        yield Subject(
            op,
            functools.partial(_loss, op, tensors),
            (*(tensors if op == losses.DISTILLATION else tensors[:2]), *numbers, "impl"),
            {"eager": Way(functools.partial(eager[op], *tensors), tensors[:1])},
        )
    x, weight, bias = tensor(1, 6, 4, 4, trained=True), tensor(4, 4, 3, 3), tensor(4)
    out, into, bias_out = tensor(2, 6, 3, 3, trained=True), tensor(4, 2, 3, 3, trained=True), tensor(2, trained=True)
    needs, one = (True, True, True, True, False), (1, 1)
    yield Subject(
        "planted_conv2d",
        lambda impl: planted_conv2d(x, weight, out, into, bias, bias_out, padding=1, impl=impl),
        (x, weight, out, into, bias, bias_out, None, needs, one, one, one, 1, 4, "none", 1, "full", "impl"),
        _conv_peers(device),
    )
    linear = linear_bench.Tensors.of((4, 4, 2, 4, 2), torch.float32, device)
    trained = linear.trained("full")
    blocks = (linear.weight, linear.weight_out, linear.weight_in, linear.bias, linear.bias_out)
    masked = linear_bench.Masked(linear, "full")
    split = linear_bench.split(linear, "full")
    yield Subject(
        "planted_linear",
        lambda impl: planted_linear(linear.input, *blocks, impl=impl),
        (linear.input, *blocks, None, needs, 4, "none", "full", "impl"),
        {
            "split + cat": Way(lambda: split(linear.input), trained),
            "masked": Way(lambda: masked.forward(linear.input), [masked.weight, masked.bias, linear.input]),
        },
    )


def _loss(op: str, tensors: Sequence[Tensor], impl: str) -> Tensor:
    return losses.our_loss(op, impl)(*tensors)


def _conv_peers(device: torch.device) -> dict[str, Way]:
    sizes = Convolution(1, 4, 2, 4, 2, kernel=3, size=4, itemsize=4)
    t = conv_peers.Tensors(sizes, torch.float32, "contiguous", device)
    trained, masked = t.trained("full"), conv_peers.Masked(t, "full")
    split, slices = conv_peers.split(t, "full"), conv_peers.slices(t, "full")
    return {
        "split + cat": Way(lambda: split(t.input), trained),
        "ATen slices": Way(lambda: slices(t.input), trained),
        "masked": Way(lambda: masked.forward(t.input), masked.trained()),
    }


def rows(settings: Settings) -> list[Row]:
    """A row for each op, direction and variant."""
    timer = CallTimer(settings.device, settings.clock())
    about = {**environment(settings.device), "clock": "processor" if settings.processor_time else "wall"}
    found: list[Row] = []
    for subject in subjects(settings.device):
        live, _ = implementations(subject.op, settings)
        ways = subject.ways(live)
        upstream = torch.ones_like(ways[EMPTY].forward())

        def both(way: Way, upstream: Tensor = upstream) -> Call:
            return lambda: torch.autograd.grad(way.forward(), way.trained, upstream)

        for direction in (FORWARD, BOTH):
            calls = {name: both(way) if direction == BOTH else way.forward for name, way in ways.items()}
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
