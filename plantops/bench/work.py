"""The work that a computation cannot avoid, and the work that a given one does, in FLOPs and bytes moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Work:
    """One pass: floating-point operations, and bytes read plus bytes written."""

    flops: float
    bytes: float

    def seconds(self, ceilings: Ceilings, arithmetic: str) -> float:
        """The least time at the machine's measured rates: arithmetic and traffic overlap, the longer one counts."""
        return max(self.flops / ceilings.matmul[arithmetic], self.bytes / ceilings.copy)


@dataclass(frozen=True)
class Ceilings:
    """What the machine reached in this run: bytes a second of a copy (read + written), FLOPs a second of a product."""

    copy: float
    matmul: Mapping[str, float]

    def columns(self, arithmetic: str) -> dict[str, float]:
        """Two columns of a table."""
        rate = self.matmul[arithmetic]
        return {"ceiling_gb_per_s": round(self.copy / 1e9, 2), "ceiling_tflop_per_s": round(rate / 1e12, 4)}


def total(passes: Iterable[Work]) -> Work:
    """The sum of several passes."""
    passes = list(passes)
    return Work(sum(work.flops for work in passes), sum(work.bytes for work in passes))


def floor_seconds(passes: Iterable[Work], ceilings: Ceilings, arithmetic: str) -> float:
    """The least time of passes that wait for each other."""
    return sum(work.seconds(ceilings, arithmetic) for work in passes)


@dataclass(frozen=True)
class Convolution:
    """The sizes of one planted convolution: stride 1, output as large as input."""

    batch: int
    trunk_in: int
    planted_in: int
    trunk_out: int
    planted_out: int
    kernel: int
    size: int
    itemsize: int = 4

    @property
    def fan_in(self) -> int:
        return self.trunk_in + self.planted_in

    @property
    def fan_out(self) -> int:
        return self.trunk_out + self.planted_out

    @property
    def planted_weights(self) -> int:
        """Pairs of an output and an input channel whose filter is planted."""
        return self.planted_out * self.fan_in + self.trunk_out * self.planted_in

    def forward(self) -> Work:
        """Input and weights read, output written; planted or masked, it is the same."""
        pairs = self.fan_in * self.fan_out
        return Work(self._flops(pairs), self._maps(self.fan_in + self.fan_out) + self._filters(pairs))

    def planted_backward(self, input_grad: str) -> Work:
        """The planted weights' gradients and, for input_grad "full" or "planted", the input's.

        The gradient to the input is as large as the input also where the trunk's part is zero by definition. With no
        planted filters the old ones' gradient needs the planted input channels alone.
        """
        read_in = self.fan_in if self.planted_out else self.planted_in
        read_out = self.fan_out if self.planted_in or input_grad != "none" else self.planted_out
        maps, filters, pairs = read_in + read_out, self.planted_weights, self.planted_weights
        if input_grad != "none":
            reached = (self.fan_in if input_grad == "full" else self.planted_in) * self.fan_out
            pairs += reached
            filters += reached
            maps += self.fan_in
        return Work(self._flops(pairs), self._maps(maps) + self._filters(filters))

    def masked_backward(self, input_grad: str) -> Work:
        """The whole weight gradient, its product with the mask and, unless "none", the whole gradient to the input."""
        pairs = self.fan_in * self.fan_out
        maps, filters, flops = self.fan_in + self.fan_out, pairs + 3 * pairs, self._flops(pairs)
        if input_grad != "none":
            maps, filters, flops = maps + self.fan_in, filters + pairs, 2 * flops
        return Work(flops, self._maps(maps) + self._filters(filters))

    def _flops(self, pairs: int) -> float:
        return 2.0 * self.batch * self.size**2 * self.kernel**2 * pairs

    def _maps(self, channels: int) -> float:
        return float(self.batch * self.size**2 * channels * self.itemsize)

    def _filters(self, pairs: int) -> float:
        return float(self.kernel**2 * pairs * self.itemsize)


def rows_of_logits(rows: int, classes: int, itemsizes: Iterable[int]) -> float:
    """Bytes of passes over a matrix of logits; one item size for each pass."""
    return float(rows * classes * sum(itemsizes))


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that each ATen operation reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name.startswith(("empty", "new_empty")) or name == "detach":
            return result
        only_written = name in ("zero_", "fill_", "zeros_like", "ones_like", "full_like")
        read = () if only_written else _tensors((args, kwargs or {}))
        self.bytes += sum(map(_bytes, (*read, *_tensors(result))))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """An expanded tensor is no larger than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def counted(call: Callable[[], Any]) -> Work:
    """The work of a call in plain PyTorch, operation by operation: what eager execution does.

    FLOPs are those of convolutions and matrix products; every ATen operation reads its tensors and writes its results.
    """
    traffic, flops = _Traffic(), FlopCounterMode(display=False)
    with flops, traffic:
        call()
    return Work(float(flops.get_total_flops()), float(traffic.bytes))
