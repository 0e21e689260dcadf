"""Autocast of the planted ops: every floating tensor but float64 is cast, as `F.conv2d` and `F.linear` do."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class _Copy(NamedTuple):
    of: weakref.ref[Tensor]
    key: tuple[int, int, torch.dtype, torch.device]  # data_ptr, version, dtype, device
    low: Tensor


_frozen_copies: dict[int, _Copy] = {}
"""By the id of a frozen tensor, its low-precision copy; it goes when the tensor goes."""
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)
_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


_KNOWN = frozenset(name for name in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(name))


def active(device_type: str) -> bool:
    """Whether autocast is on for this kind of device."""
    if device_type not in _KNOWN and not torch.amp.is_autocast_available(device_type):
        return False
    return torch.is_autocast_enabled(device_type)


class _Off:
    """`torch.autocast(device_type, enabled=False)` without its bookkeeping, which takes as long as a small kernel."""

    def __init__(self, device_type: str) -> None:
        self._device_type, self._before = device_type, False

    def __enter__(self) -> None:
        self._before = torch.is_autocast_enabled(self._device_type)
        torch.set_autocast_enabled(self._device_type, False)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_enabled(self._device_type, self._before)


def disabled(device_type: str) -> AbstractContextManager[None]:
    """A context in which autocast leaves our own ATen calls alone."""
    if torch.compiler.is_compiling() or torch._C._is_torch_function_mode_enabled():
        return torch.autocast(device_type, enabled=False)  # which those who trace know about
    return _Off(device_type)


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
    number = id(tensor)
    kept = _frozen_copies.get(number)
    if kept is None or kept.of() is not tensor or kept.key != key:
        with torch.no_grad():
            low = tensor.detach().to(dtype)
        kept = _Copy(weakref.ref(tensor, lambda _: _frozen_copies.pop(number, None)), key, low)
        _frozen_copies[number] = kept
    return kept.low


def _eligible(tensor: Tensor, device_type: str) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.device.type == device_type


def _cacheable(tensor: Tensor) -> bool:
    """Not while compiling or capturing, and only ordinary tensors: others have no data pointer or no version."""
    if torch.compiler.is_compiling() or type(tensor) not in _PLAIN or tensor.is_inference():
        return False
    if torch.is_inference_mode_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
