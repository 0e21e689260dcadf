"""What the planted layers share: frozen tensors, new blocks and how they start, joining them for merge()."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from plantops._arguments import MOST
from plantops.errors import ArgumentError

INITS = ("zero_in", "kaiming", "zero_out")


class Planted(nn.Module):
    """Base of the planted layers."""

    def check_called(self, input: Tensor) -> None:
        """ValueError where the layer is traced by `torch.jit.trace` or `torch.fx`, or exported to ONNX, not called."""
        if _exported_to_onnx():
            raise self._not_merged("exported to ONNX")
        if torch.jit.is_tracing() or isinstance(input, torch.fx.Proxy):
            raise self._not_merged("traced")

    def __prepare_scriptable__(self) -> nn.Module:
        raise self._not_merged("scripted")

    def _not_merged(self, what: str) -> ArgumentError:
        return ArgumentError(
            f"a planted layer ({type(self).__name__}) cannot be {what}: exporters, quantisers and fusion take the "
            "plain model, call plantops.merge(model) first"
        )


def _exported_to_onnx() -> bool:
    """`torch.onnx.is_in_onnx_export()`, which a strict `torch.export` takes for False: there its flag tells."""
    if torch.onnx.is_in_onnx_export():
        return True
    exporter = getattr(getattr(torch.onnx, "_internal", None), "exporter", None)
    return bool(getattr(getattr(exporter, "_flags", None), "_is_onnx_exporting", False))


def check_init(init: str) -> None:
    """ValueError unless a layer alone can start its blocks that way."""
    if not isinstance(init, str) or init not in INITS:
        raise ArgumentError(f"init: expected one of {', '.join(map(repr, INITS))}, got {init!r}")


def check_count(name: str, value: int) -> None:
    """ValueError unless `value` counts something."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
        raise ArgumentError(f"{name}: expected an integer >= 0, got {value!r}")


def check_start(name: str, start: int | None, old: int) -> int:
    """ValueError unless new channels begin in [0, old]; None stands for old, behind the others."""
    if start is None:
        return old
    if not isinstance(start, int) or not 0 <= start <= old:
        raise ArgumentError(f"{name}: expected an integer in [0, {old}], got {start!r}")
    return start


def requires_grad(tensor: Tensor | None) -> bool:
    """Whether a layer's tensor, if there is one, trains."""
    return tensor is not None and tensor.requires_grad


def frozen(tensor: Tensor | None) -> nn.Parameter | None:
    """A weight of the trunk: the same memory, as a parameter that does not train.

    Not a buffer: DistributedDataParallel sends all buffers at every step and frozen parameters once, fully_shard shards
    parameters alone, and what counts parameters counts them.
    """
    return plain_parameter(None if tensor is None else tensor.detach(), False)


def plain_parameter(tensor: Tensor | None, trains: bool) -> nn.Parameter | None:
    """A parameter of a plain layer."""
    return None if tensor is None else nn.Parameter(tensor, requires_grad=trains)


def block(
    like: Tensor, shape: tuple[int, ...], fan_in: int, zero: bool, generator: torch.Generator | None
) -> nn.Parameter:
    """A new block beside the trunk's weight `like`: zeros, or He's normal initialisation for ReLU, N(0, 2 / fan_in),
    drawn in float32 on the generator's device."""
    if zero:
        values = torch.zeros(shape, device=like.device)
    else:
        device = like.device if generator is None else generator.device
        values = torch.randn(shape, generator=generator, device=device) * math.sqrt(2 / max(1, fan_in))
    return nn.Parameter(values.to(like.device, like.dtype).contiguous(memory_format=layout(like)))


def zeros(like: Tensor, count: int) -> nn.Parameter:
    """New entries of the bias `like`."""
    return nn.Parameter(like.new_zeros(count))


def layout(weight: Tensor) -> torch.memory_format:
    """The memory format of a weight, channels_last or plain."""
    plain = weight.dim() != 4 or weight.is_contiguous()
    return torch.contiguous_format if plain else torch.channels_last


def join_inputs(trunk: Tensor, planted: Tensor | None, start: int) -> Tensor:
    """Old filters over all inputs: the planted slices inserted at `start` along dimension 1."""
    return trunk if planted is None else torch.cat([trunk[:, :start], planted, trunk[:, start:]], 1)


def join_rows(trunk: Tensor, out: Tensor | None, planted_in: Tensor | None, start: int) -> Tensor:
    """All filters over all inputs, differentiable in the blocks."""
    rows = join_inputs(trunk, planted_in, start)
    return rows if out is None else torch.cat([rows, out])


def join_weight(trunk: Tensor, out: Tensor | None, planted_in: Tensor | None, start: int) -> Tensor:
    """A copy of all filters over all inputs, in the trunk's memory format."""
    return join_rows(trunk, out, planted_in, start).clone(memory_format=layout(trunk))


def join(trunk: Tensor | None, planted: Tensor | None, start: int | None = None) -> Tensor | None:
    """Old and new entries along dimension 0, the new ones at `start` (default: behind), in memory of their own."""
    if trunk is None:
        return None
    if planted is None:
        return trunk.clone()
    start = trunk.shape[0] if start is None else start
    return torch.cat([trunk[:start], planted, trunk[start:]])
