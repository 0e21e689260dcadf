"""What a benchmark is made of: cases, the variants that compute each, and their check against float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plantops.bench.timing import Call, Make
from plantops.bench.work import Work

BOTH, BACKWARD = "forward + backward", "backward"
OURS, PEER, BASELINE = "ours", "peer", "baseline"
"""Roles: the best of peers and baseline is what we are held against; the baseline also has a column of its own."""
Values = tuple[Tensor, ...]


@dataclass(frozen=True)
class Variant:
    """One way to compute a case.

    Attributes:
        name, role: columns of the table.
        call: does everything once.
        values: computes what is compared with float64.
        backward: makes a call that does the backward alone; None where there is none.
        forward, source: the forward as a function of its input, and that input, to see what stays alive.
        parameters: tensors that live anyway.
        passes: the least work for each direction.
    """

    name: str
    role: str
    call: Call
    values: Callable[[], Values]
    passes: Mapping[str, Sequence[Work]]
    backward: Make | None = None
    forward: Callable[[Tensor], Tensor] | None = None
    source: Tensor | None = None
    parameters: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Problem:
    """A prepared case: its tensors exist, its variants can be called."""

    variants: Sequence[Variant]
    exact: Callable[[], Values]
    tolerance: float
    peer_tolerance: float | None = None
    """Of peers that round more often than we do; default: the same."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Names of our implementations that cannot compute here -> why."""


@dataclass(frozen=True)
class Case:
    """A shape of a benchmark; `prepare` makes its tensors. `columns` begin every row of the table."""

    columns: Mapping[str, Any]
    prepare: Callable[[], Problem]
    arithmetic: str
    """"float32", "tf32", "bfloat16", ...: the matrix arithmetic that is the ceiling."""

    @property
    def name(self) -> str:
        return " ".join(str(value) for value in self.columns.values())


def differentiated(
    name: str,
    role: str,
    forward: Callable[[Tensor], Tensor],
    source: Tensor,
    trained: Sequence[Tensor],
    *,
    upstream: Tensor | None = None,
    passes: Mapping[str, Sequence[Work]],
    parameters: Sequence[Tensor] = (),
    comparable: Callable[[Values], Values] = lambda values: values,
) -> Variant:
    """A variant that autograd differentiates: forward, then the gradients of `trained`.

    Args:
        forward: of the input `source`.
        upstream: the gradient of the output; default: one of ones, made once, so that no call is timed filling it.
        comparable: brings the gradients into the order and shapes of the others'.
    """

    def gradients(output: Tensor, retain: bool = False) -> Values:
        nonlocal upstream
        if upstream is None:
            upstream = torch.ones_like(output)
        return torch.autograd.grad(output, list(trained), upstream, retain_graph=retain)

    def make_backward() -> Call:
        output = forward(source)
        return lambda: gradients(output, retain=True)

    def values() -> Values:
        output = forward(source)
        return (output.detach(), *comparable(gradients(output)))

    return Variant(
        name, role, lambda: gradients(forward(source)), values, passes, make_backward, forward, source, parameters
    )


def error_of(values: Values, exact: Values) -> float:
    """The largest relative L2 error of several tensors; NaN if one has a NaN."""
    errors = [_relative(ours, theirs) for ours, theirs in zip(values, exact, strict=True)]
    return float(torch.tensor(errors, dtype=torch.float64).max())  # unlike Python's max, it keeps a NaN


def _relative(ours: Tensor, exact: Tensor) -> float:
    """Row by row: a float64 copy of the largest matrices would not fit beside them."""
    if ours.shape != exact.shape:
        raise ValueError(f"shape {list(ours.shape)}, expected {list(exact.shape)}")
    lines = zip(ours.reshape(-1).split(1 << 26), exact.reshape(-1).split(1 << 26), strict=True)
    squares = [((a.double() - b.double()).square().sum(), b.double().square().sum()) for a, b in lines]
    wrong, size = (torch.stack(column).sum().sqrt() for column in zip(*squares, strict=True))
    return float(wrong / size)


def verified(problem: Problem) -> tuple[list[Variant], dict[str, str]]:
    """The variants that compute the right thing, and for every other one what is wrong with it.

    A reason begins with "not available:" (it refuses the case), "wrong:" (its numbers are) or "failed:".
    """
    reasons = {name: f"not available: {why}" for name, why in problem.refused.items()}
    good = []
    exact = problem.exact()
    for variant in problem.variants:
        try:
            error = error_of(variant.values(), exact)
        except NotImplementedError as reason:
            reasons[variant.name] = f"not available: {_line(reason)}"
        except Exception as reason:
            reasons[variant.name] = f"failed: {_line(reason)}"
        else:
            allowed = problem.tolerance
            if variant.role != OURS:
                allowed = problem.peer_tolerance or allowed
            if error <= allowed:
                good.append(variant)
            else:
                reasons[variant.name] = f"wrong: relative error {error:.1e}, allowed {allowed:.0e}"
    return good, reasons


def is_bad(status: str) -> bool:
    """Whether a variant should have computed the case and did not: "wrong:" or "failed:"."""
    return status.startswith(("wrong:", "failed:"))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
