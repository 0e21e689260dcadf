"""The errors of mistakes that a caller can put right: one base class.

``PlantopsError`` catches all of them; each is also the built-in error of its kind, so ``except ValueError`` works, too.
"""

from __future__ import annotations

__all__ = ["ArgumentError", "ArgumentKeyError", "ArgumentTypeError", "PlantopsError"]


class PlantopsError(Exception):
    """A mistake that the caller can put right. The message names what was expected and what came."""


class ArgumentError(PlantopsError, ValueError):
    """An argument with a value that it cannot have."""


class ArgumentKeyError(PlantopsError, KeyError):
    """A name that is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


class ArgumentTypeError(PlantopsError, TypeError):
    """An argument of a type that it cannot have."""
