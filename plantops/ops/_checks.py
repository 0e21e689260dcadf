"""Argument checks that several ops share. Each error names the argument, what was expected and what came."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.ops import _transforms

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MIN_CLASSES, MAX_CLASSES = 2, 262_144


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {described(value)}")


def described(value: object) -> str:
    """What came instead of an argument: a tensor by its shape and dtype, a word or number as it is, else the type."""
    if isinstance(value, Tensor):
        return f"a Tensor of shape {tuple(value.shape)} and {value.dtype}"
    plain = value is None or isinstance(value, (str, int, float, complex, tuple))
    return repr(value) if plain else f"an object of type {type(value).__name__}"


def check_integer(name: str, value: Any) -> None:
    """TypeError unless `value` is an integer, not a tensor that holds one."""
    if not isinstance(value, (int, torch.SymInt)):
        raise ArgumentTypeError(f"{name}: expected an integer, got {described(value)}")


def check_number(name: str, value: Any) -> None:
    """TypeError unless `value` is a number, not a tensor that holds one."""
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, numbers.Real)):
        raise ArgumentTypeError(f"{name}: expected a number, got {described(value)}")


def check_float_tensor(name: str, tensor: Tensor) -> None:
    """TypeError unless `tensor` is a floating tensor of a dtype that the ops compute in."""
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(f"{name}: expected a Tensor, got {described(tensor)}")
    if tensor.dtype not in FLOATS:
        raise ArgumentTypeError(f"{name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}")


def check_logits(student: Tensor, teacher: Tensor, temperature: float) -> None:
    """What every loss on a pair of logits requires of it."""
    check_float_tensor("student", student)
    check_float_tensor("teacher", teacher)
    if student.dim() == 0:
        raise ArgumentError("student: expected at least one dimension (the classes), got a scalar")
    if student.shape != teacher.shape:
        raise ArgumentError(f"teacher: expected the student's shape {tuple(student.shape)}, got {tuple(teacher.shape)}")
    if student.device != teacher.device:
        raise ArgumentError(f"teacher: expected the student's device {student.device}, got {teacher.device}")
    classes = student.shape[-1]
    if not MIN_CLASSES <= classes <= MAX_CLASSES:
        raise ArgumentError(
            f"student: expected {MIN_CLASSES} to {MAX_CLASSES} classes in the last dimension, got {classes}"
        )
    if teacher.requires_grad and torch.is_grad_enabled():
        raise ArgumentError(
            "teacher: expected a tensor without gradient, got requires_grad=True; pass teacher.detach()"
        )
    check_positive("temperature", temperature)


def class_indices(target: Tensor, student: Tensor) -> Tensor:
    """Class indices for these logits as int64; their range is data, and the kernels' to check."""
    if not isinstance(target, Tensor) or target.dtype not in INTEGER_DTYPES:
        raise ArgumentTypeError(f"target: expected a tensor of integers, the class indices, got {described(target)}")
    if target.shape != student.shape[:-1]:
        raise ArgumentError(f"target: expected shape {tuple(student.shape[:-1])}, got {tuple(target.shape)}")
    if target.device != student.device:
        raise ArgumentError(f"target: expected the student's device {student.device}, got {target.device}")
    return target.long()


def check_mask(mask: Tensor, student: Tensor) -> None:
    """What a mask of rows of these logits must be."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise ArgumentTypeError(f"mask: expected a bool tensor or None, got {described(mask)}")
    if mask.shape != student.shape[:-1]:
        raise ArgumentError(f"mask: expected shape {tuple(student.shape[:-1])}, got {tuple(mask.shape)}")
    if mask.device != student.device:
        raise ArgumentError(f"mask: expected the student's device {student.device}, got {mask.device}")


def check_target_range(target: Tensor, classes: int) -> None:
    """ValueError naming the first class index outside [0, classes); on a GPU a device assert, without a sync."""
    values = _transforms.values(target)
    if values is None:
        return
    inside = (values >= 0) & (values < classes)
    if target.device.type != "cpu":
        torch._assert_async(inside.all(), f"target: expected class indices in [0, {classes})")
    elif not inside.all():
        raise ArgumentError(f"target: expected class indices in [0, {classes}), got {int(values[~inside][0])}")


def check_positive(name: str, value: float) -> None:
    """ValueError unless `value` is a finite number above zero."""
    check_number(name, value)
    if not 0 < value < float("inf"):  # a comparison: a number that changes between compiled calls stays one
        raise ArgumentError(f"{name}: expected a finite number > 0, got {value}")


def check_unit(name: str, value: float) -> None:
    """ValueError unless `value` lies in [0, 1]."""
    check_number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ArgumentError(f"{name}: expected a number in [0, 1], got {value}")


def check_shape(name: str, tensor: Tensor | None, expected: tuple[int, ...]) -> None:
    """ValueError unless `tensor` is None or has the expected shape."""
    if tensor is not None and tensor.shape != expected:
        raise ArgumentError(f"{name}: expected shape {tuple(expected)}, got {tuple(tensor.shape)}")


def check_alike(required: dict[str, Tensor], **optional: Tensor | None) -> None:
    """TypeError unless all tensors share the first one's dtype, a floating one; ValueError for another device."""
    first_name, first = next(iter(required.items()))
    check_float_tensor(first_name, first)
    dtype, device = first.dtype, first.device
    for name, tensor in {**required, **optional}.items():
        if tensor is first or (tensor is None and name in optional):
            continue
        if not isinstance(tensor, Tensor):
            kind = "a Tensor or None" if name in optional else "a Tensor"
            raise ArgumentTypeError(f"{name}: expected {kind}, got {described(tensor)}")
        if tensor.dtype != dtype:
            raise ArgumentTypeError(f"{name}: expected the {first_name}'s dtype {dtype}, got {tensor.dtype}")
        if tensor.device != device:
            raise ArgumentError(f"{name}: expected the {first_name}'s device {device}, got {tensor.device}")


def check_in_start(in_start: int | None, trunk: int) -> int:
    """ValueError unless the planted inputs begin inside [0, F_in]; None stands for F_in, behind the trunk's."""
    if in_start is None:
        return trunk
    check_integer("in_start", in_start)
    if not 0 <= in_start <= trunk:
        raise ArgumentError(f"in_start: expected an integer in [0, F_in] = [0, {trunk}], got {in_start}")
    return in_start


def check_dims(name: str, tensor: Tensor | None, layout: str) -> None:
    """ValueError unless `tensor` is None or has a dimension for each name of its layout."""
    if tensor is not None and tensor.dim() != layout.count(",") + 1:
        raise ArgumentError(f"{name}: expected {layout}, got {tuple(tensor.shape)}")


def check_frozen(name: str, tensor: Tensor | None) -> None:
    """ValueError when a tensor of the trunk requires a gradient."""
    if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
        raise ArgumentError(
            f"{name}: expected a frozen tensor without gradient, got requires_grad=True; pass {name}.detach()"
        )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that losses are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
