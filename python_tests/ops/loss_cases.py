"""Pairs of logits to test the losses on: dtypes, shapes, memory layouts, and which implementations are there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plantops.ops import _registry, _triton

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Fewer classes than a vector has lanes, exactly as many, one more, several vectors; past the block in which lanes are
# summed; one dimension, and three.
SHAPES = ((7, 2), (5, 10), (3, 16), (3, 17), (4, 100), (2, 1000), (1, 9001), (13,), (2, 3, 5))
# Triton's interpreter is slow: a tile of several rows with lanes to spare, and a row of several blocks.
INTERPRETED_SHAPES = ((3, 17), (1, 4999))


def shapes(impl: str) -> tuple[tuple[int, ...], ...]:
    """The shapes to test an implementation on."""
    return INTERPRETED_SHAPES if impl == "triton" and _triton.interpreted() else SHAPES


IMPLS = ("reference", "aten", "native", "triton")


def implementations(stem: str) -> list:
    """One test parameter for each implementation; what is not live on a CPU is skipped with the reason."""
    return [
        pytest.param(
            impl,
            marks=pytest.mark.skipif(
                not _registry.live(stem, impl, "cpu"), reason=f"{impl}: {_registry.why_not(stem, impl, 'cpu')}"
            ),
        )
        for impl in IMPLS
    ]


@pytest.fixture
def one_thread():
    """torch starts its threads even for tiny softmaxes, which on a busy machine takes a thousand times the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(shape: tuple[int, ...], dtype: torch.dtype, seed: int, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu") * spread
    return values.to(torch.get_default_device(), dtype)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values [B, C] in memory of other strides."""
    batch, classes = x.shape
    wide = x.new_full((batch, classes + 9), float("nan"))
    wide[:, 4 : 4 + classes] = x
    strided = x.new_full((2 * batch, 3 * classes), float("nan"))
    strided[::2, 1::3] = x
    return {
        "columns of a wider tensor": wide[:, 4 : 4 + classes],
        "transposed": x.T.contiguous().T,
        "every third class of every second row": strided[::2, 1::3],
    }


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def saved_bytes(saved: list[Tensor], inputs: tuple[Tensor, ...]) -> int:
    """Bytes of storage that `saved` keeps alive beyond the inputs."""
    own = {x.untyped_storage().data_ptr() for x in inputs}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in saved}
    return sum(size for address, size in storages.items() if address not in own)
