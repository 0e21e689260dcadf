"""Autocast of the planted ops: every floating tensor but float64 is cast, as `F.conv2d` and `F.linear` do."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# frozen tensor -> ((data_ptr, version, dtype, device), its low-precision copy); it goes when the tensor goes.
_frozen_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)
_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


_KNOWN = frozenset(name for name in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(name))


def active(device_type: str) -> bool:
    """Whether autocast is on for this kind of device."""
    if device_type not in _KNOWN and not torch.amp.is_autocast_available(device_type):
        return False
    return torch.is_autocast_enabled(device_type)


def disabled(device_type: str) -> torch.autocast:
    """A context in which autocast leaves our own ATen calls alone."""
    return torch.autocast(device_type, enabled=False)


def cast(tensor: MaybeTensor, device_type: str) -> MaybeTensor:
    """The tensor in autocast's dtype, differentiable; float64 and other devices' tensors stay as they are."""
    if tensor is None or not _eligible(tensor, device_type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def cast_frozen(tensor: MaybeTensor, device_type: str) -> MaybeTensor:
    """As `cast`, for a tensor that does not train: the copy is kept until its data, version or device changes."""
    if tensor is None or not _eligible(tensor, device_type):
        return tensor
    dtype = torch.get_autocast_dtype(device_type)
    if tensor.dtype == dtype or not _cacheable(tensor):
        return tensor.to(dtype)
    key = (tensor.data_ptr(), tensor._version, dtype, tensor.device)
    kept = _frozen_copies.get(tensor)
    if kept is None or kept[0] != key:
        with torch.no_grad():
            kept = (key, tensor.detach().to(dtype))
        _frozen_copies[tensor] = kept
    return kept[1]


def _eligible(tensor: Tensor, device_type: str) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.device.type == device_type


def _cacheable(tensor: Tensor) -> bool:
    """Not while compiling or capturing, and only ordinary tensors: others have no data pointer or no version."""
    if torch.compiler.is_compiling() or type(tensor) not in _PLAIN or tensor.is_inference():
        return False
    if torch.is_inference_mode_enabled():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
