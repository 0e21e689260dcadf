"""Random numbers by name: every use has a generator of its own, made from the run's seed and what the numbers are for.

Nothing here touches torch's global generator, so what one part of a run draws can never move what another part draws.
"""

from __future__ import annotations

import hashlib

import torch

from plantops.errors import ArgumentTypeError


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed that is a function of ``seed`` and ``keys`` alone, the same on every machine and Python version.

    The first 63 bits of SHA-256 over the decimal integers and the strings, each with its type and its length, so
    ``derive(1, 23)``, ``derive(12, 3)`` and ``derive(1, "23")`` are unrelated.

    Raises:
        TypeError: a key is neither an integer nor a string.
    """
    digest = hashlib.sha256()
    for key in (seed, *keys):
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise ArgumentTypeError(f"seed and keys must be int or str, got {type(key).__name__}: {key!r}")
        text = str(key).encode()
        digest.update(b"%c%d:" % (b"i" if isinstance(key, int) else b"s", len(text)))
        digest.update(text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A ``torch.Generator`` seeded with ``derive(seed, *keys)``."""
    return torch.Generator(device=device).manual_seed(derive(seed, *keys))
