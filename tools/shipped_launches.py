"""The Triton launches that the kernel report compiles: what the ops start on shapes of every class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._triton import Launch
from plantops.ops.distillation_loss import triton as distillation
from plantops.ops.group_sparsity import triton as sparsity
from plantops.ops.kl_div_logits import triton as kl
from plantops.ops.planted_conv2d import triton as conv
from plantops.ops.planted_conv2d.triton_common import DOUBLES
from plantops.ops.planted_linear import triton as linear
from plantops.ops.qsne_kl import triton as qsne

ROWS = 4096
LAST, FIRST = torch.channels_last, torch.contiguous_format
PLAIN, POOLED, ADDED = ("none", 1, False), ("relu", 2, False), ("relu", 1, True)  # activation, max_pool, addend
# Trunk channels, planted ones, height = width, batch.
SMALL, MIDDLE, LARGE = (8, 4, 32, 128), (64, 8, 32, 512), (256, 64, 8, 512)
CONVOLUTIONS = {
    ("bfloat16", "ieee"): [
        (SMALL, LAST, PLAIN), (MIDDLE, LAST, PLAIN), (LARGE, LAST, PLAIN), (MIDDLE, LAST, POOLED),
        (MIDDLE, LAST, ADDED), (MIDDLE, FIRST, PLAIN), (LARGE, FIRST, PLAIN), (MIDDLE, FIRST, POOLED),
    ],
    ("float16", "ieee"): [(MIDDLE, LAST, PLAIN)],
    ("float32", "tf32"): [
        (MIDDLE, LAST, PLAIN), (LARGE, LAST, PLAIN), (MIDDLE, LAST, POOLED), (LARGE, FIRST, PLAIN),
        (MIDDLE, FIRST, POOLED),
    ],
    ("float32", "ieee"): [(MIDDLE, LAST, PLAIN), (LARGE, FIRST, PLAIN), (MIDDLE, LAST, POOLED)],
    ("float64", "ieee"): [(MIDDLE, LAST, PLAIN), (MIDDLE, FIRST, POOLED)],
}  # fmt: skip
# Rows, features, planted ones: the hidden layer of a transformer's block, and one with features that no vector divides.
LINEARS = {
    ("bfloat16", "ieee"): [(8192, 768, 64), (8192, 770, 3)],
    ("float16", "ieee"): [(8192, 768, 64)],
    ("float32", "tf32"): [(8192, 768, 64)],
    ("float32", "ieee"): [(8192, 768, 64)],
}
LOSSES = {
    "float32": (10, 100, 1000, 4096, 32768),
    "bfloat16": (10, 100, 1000, 4096, 32768),
    "float16": (1000,),
    "float64": (10, 1000, 32768),
}
REGULARISED = {
    "float32": (
        "l1",
        "group_lasso",
        "hierarchical_square_rooted_exclusive_sparsity",
        "hierarchical_squared_group_l1_2",
    ),
    "bfloat16": ("group_lasso", "hierarchical_squared_group_l1_2"),
    "float64": ("hierarchical_square_rooted_group_lasso",),
}
EMBEDDED = {"float32": (1.0, 1.5, 2.0), "float64": (1.0, 1.5, 2.0)}  # q, for each number type
POINTWISE = (1000, 32768)  # widths that are reduced to nothing as well


def meta(*shape: int, dtype: torch.dtype, layout: torch.memory_format = FIRST) -> Tensor:
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta", memory_format=layout)


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """torch's flags for float32 convolutions and matrix products set to "tf32" or "ieee"."""
    flags = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [flag.fp32_precision for flag in flags]
    for flag in flags:
        flag.fp32_precision = precision
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value


def run_convolution(
    shape: tuple[int, int, int, int], layout: torch.memory_format, epilogue: tuple[str, int, bool], dtype: torch.dtype
) -> None:
    """Forward and backward of a 3 x 3 convolution: the same number of channels in and out, planted on both sides."""
    (channels, planted, side, batch), (activation, pool, added) = shape, epilogue
    wide = channels + planted
    weight, weight_out = meta(channels, channels, 3, 3, dtype=dtype), meta(planted, wide, 3, 3, dtype=dtype)
    weight_in = meta(channels, planted, 3, 3, dtype=dtype)
    bias, bias_out = meta(channels, dtype=dtype), meta(planted, dtype=dtype)
    x = meta(batch, wide, side, side, dtype=dtype, layout=layout)
    addend = meta(batch, wide, side, side, dtype=dtype, layout=layout) if added else None
    geometry = ((1, 1), (1, 1), (1, 1), 1, channels)
    y, positions = conv.forward(
        x, weight, weight_out, weight_in, bias, bias_out, *geometry, addend, activation, pool, pool > 1
    )
    conv.backward(
        torch.empty_like(y), x, weight, weight_out, weight_in, y if activation == "relu" else None,
        positions if pool > 1 else None, (side, side), (side, side), *geometry, planted, activation, pool, "planted",
        (True, True, True, True, added),
    )  # fmt: skip


def run_linear(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Forward with an addend, and backward, of as many features in as out, planted on both sides."""
    count, old, new = shape
    x, weight, weight_out = (meta(*size, dtype=dtype) for size in ((count, old + new), (old, old), (new, old + new)))
    weight_in, bias, bias_out = (meta(*size, dtype=dtype) for size in ((old, new), (old,), (new,)))
    for addend, activation in ((None, "none"), (torch.empty_like(x), "relu")):
        y = linear.forward(x, weight, weight_out, weight_in, bias, bias_out, old, addend, activation)
        saved = y if activation == "relu" else None
        mask = (True, True, True, True, addend is not None)
        linear.backward(torch.empty_like(y), x, weight, weight_out, weight_in, saved, old, activation, "planted", mask)


def run_losses(classes: int, dtype: torch.dtype) -> None:
    """Both losses, forward and backward, reduced and for some widths not."""
    student, teacher = meta(ROWS, classes, dtype=dtype), meta(ROWS, classes, dtype=dtype)
    target = torch.empty(ROWS, dtype=torch.int64, device="meta")
    for reduction in ("mean", "none") if classes in POINTWISE else ("mean",):
        loss, *sums = kl.forward(student, teacher, 2.0, reduction)
        kl.backward(loss, student, teacher, *sums, 2.0, reduction)
        kl.value_and_grad(student, teacher, 2.0, reduction)
        config = (0.5, 2.0, 0.1, reduction)
        loss, *sums = distillation.forward(student, teacher, target, *config)
        distillation.backward(loss, student, teacher, target, *sums, *config)


def run_regulariser(penalty: str, dtype: torch.dtype) -> None:
    """Value, gradient, and both in one, of two layers with groups of either kind."""
    weights = [meta(64, 3, 7, 7, dtype=dtype), meta(64, 64, 3, 3, dtype=dtype, layout=LAST)]
    for groups in ("feature", "neuron"):
        value, coefficients = sparsity.forward(weights, penalty, groups, 1e-3, 1e-3)
        sparsity.value_and_grad(weights, penalty, groups, 1e-3, 1e-3)
    sparsity.backward(value, weights, coefficients, penalty, 1e-3)


def run_embedding(q: float, dtype: torch.dtype) -> None:
    """Objective and gradient of embeddings in two and three dimensions, P dense and over neighbours."""
    points, neighbours = 2000, 90
    p, values = meta(points, points, dtype=dtype), meta(points * neighbours, dtype=dtype)
    crow, col = (torch.empty(n, dtype=torch.int64, device="meta") for n in (points + 1, points * neighbours))
    for dimensions in (2, 3):
        y = meta(points, dimensions, dtype=dtype)
        for value in (True, False) if dimensions == 2 else (False,):
            qsne.forward(y, p, None, None, q, 1.0, value)
            qsne.forward(y, values, crow, col, q, 1.0, value)


def launches() -> list[Launch]:
    """Everything that the report compiles; some of it more than once."""
    with _triton.recording() as recorded:
        for (name, precision), cases in CONVOLUTIONS.items():
            if name == "float64" and not DOUBLES:
                continue  # refused under this Triton
            with float32_precision(precision):
                for shape, layout, epilogue in cases:
                    run_convolution(shape, layout, epilogue, getattr(torch, name))
        for (name, precision), sizes in LINEARS.items():
            with float32_precision(precision):
                for size in sizes:
                    run_linear(size, getattr(torch, name))
        for name, widths in LOSSES.items():
            for classes in widths:
                run_losses(classes, getattr(torch, name))
        for name, penalties in REGULARISED.items():
            for penalty in penalties:
                run_regulariser(penalty, getattr(torch, name))
        for name, qs in EMBEDDED.items():
            for q in qs:
                run_embedding(q, getattr(torch, name))
    return recorded
