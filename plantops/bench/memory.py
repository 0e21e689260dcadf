"""What a forward keeps alive for its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from plantops.bench.gpu import allocated_by


def kept_bytes(forward: Callable[[Tensor], Tensor], source: Tensor, parameters: Sequence[Tensor] = ()) -> int:
    """Bytes alive between forward and backward because of this forward, its output not counted.

    On CUDA the allocator's delta; elsewhere the storages that autograd saves. The input counts if it is kept: it is
    made for this call and dropped after it. `parameters` live anyway.
    """
    if source.device.type == "cuda":
        return allocated_by(source.device, forward, source)
    return saved_by(forward, source, parameters)


def saved_by(forward: Callable[[Tensor], Tensor], source: Tensor, parameters: Sequence[Tensor] = ()) -> int:
    """The bytes of the distinct storages that autograd saves, without the output's and the parameters'."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    fresh = source.clone()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward(fresh)
    anyway = {tensor.untyped_storage().data_ptr() for tensor in (output, *parameters)}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in anyway)
