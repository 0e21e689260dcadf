"""Checks of plain arguments. Each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

from plantops.errors import ArgumentError, ArgumentTypeError

MOST = (1 << 63) - 1
"""The largest whole number that torch takes."""


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raises ValueError when ``value`` is none of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_minimum(name: str, value: int, minimum: int) -> None:
    """Raises ValueError when ``value`` is no integer of at least ``minimum``."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= MOST:
        raise ArgumentError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def check_range(name: str, value: float, inside: Callable[[float], bool], expected: str) -> None:
    """Raises ValueError unless ``value`` is a finite number and ``inside``, which ``expected`` says in words."""
    check_number(name, value, expected)
    if not math.isfinite(value):
        raise ArgumentError(f"{name} must be finite and {expected}, got {value!r}")
    if not inside(float(value)):
        raise ArgumentError(f"{name} must be {expected}, got {value!r}")


def check_number(name: str, value: float, expected: str) -> None:
    """Raises TypeError unless ``value`` is a real number, which ``expected`` says more of."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be a number, {expected}, got {value!r}")


def check_rate(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` can be a learning rate: a finite number above 0."""
    check_range(name, value, lambda rate: rate > 0, "above 0")


def check_flag(name: str, value: bool) -> None:
    """Raises ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{name} must be True or False, got {value!r}")


def check_type(name: str, value: object, kind: type, called: str | None = None) -> None:
    """Raises TypeError unless ``value`` is a ``kind``, which is called ``called``."""
    if not isinstance(value, kind):
        got = "None" if value is None else type(value).__name__
        got += f": {value!r}" if isinstance(value, (str, int, float)) else ""
        raise ArgumentTypeError(f"{name} must be {called or f'a {kind.__name__}'}, got {got}")
