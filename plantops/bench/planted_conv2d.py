"""planted_conv2d, forward + backward and backward alone, beside its peers.

Variants: our implementations; ``split + cat`` (one convolution a block), ``ATen slice`` (a full convolution forward,
`aten.convolution_backward` on channel slices) and ``masked`` (the whole weight gradient times a mask: the baseline),
each eager and under torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plantops.bench.case import BACKWARD, BASELINE, BOTH, OURS, PEER, Case, Problem, Values, Variant, differentiated
from plantops.bench.ceilings import arithmetic
from plantops.bench.conv_peers import Masked, Tensors, slices, split
from plantops.bench.live import implementations
from plantops.bench.record import dtype_name
from plantops.bench.runner import Settings
from plantops.bench.work import Convolution
from plantops.functional import planted_conv2d

SHAPE_HELP = "N,F_in,P_in,F_out,P_out,K,S[,channels_last][,full|planted|none]"
TOLERANCES = {"float64": 1e-12, "float32": 5e-5, "tf32": 2e-3, "bfloat16": 1e-2, "float16": 2e-3}
"""Relative L2 of output and gradients. float32: peers add 131,072 numbers that cancel into one bias gradient."""

# group, name, batch, trunk in, planted in, trunk out, planted out, kernel, height = width
Shape = tuple[str, str, int, int, int, int, int, int, int]
QUICK: list[Shape] = [
    ("quick", "16x16x64 + 8", 128, 64, 8, 64, 8, 3, 16),
    ("quick", "32x32x8 + 4", 128, 8, 4, 8, 4, 3, 32),
    ("quick", "8x8x16 + 4", 128, 16, 4, 16, 4, 3, 8),
]
SMALL: list[Shape] = [
    ("small", "9x9x5 + 3", 2, 5, 3, 7, 2, 3, 9),
    ("small", "8x8x32 + 8", 2, 32, 8, 32, 8, 3, 8),
    ("small", "5x5x16 + 1, kernel 1", 3, 16, 1, 16, 1, 1, 5),
    ("small", "7x7x3, 8 + 4 filters", 2, 3, 0, 8, 4, 3, 7),
]
ON_CPU: list[Shape] = [
    ("cpu", "32x32x64 + 8", 128, 64, 8, 64, 8, 3, 32),
    ("cpu", "16x16x128 + 16", 128, 128, 16, 128, 16, 3, 16),
    ("cpu", "8x8x256 + 32", 128, 256, 32, 256, 32, 3, 8),
    ("cpu", "32x32x32 + 4", 128, 32, 4, 32, 4, 3, 32),
    ("cpu", "16x16x64 + 4", 128, 64, 4, 64, 4, 3, 16),
    ("cpu", "32x32x8 + 4", 128, 8, 4, 8, 4, 3, 32),
    ("cpu", "16x16x8 + 4", 128, 8, 4, 8, 4, 3, 16),
    ("cpu", "16x16x16 + 4", 128, 16, 4, 16, 4, 3, 16),
    ("cpu", "8x8x32 + 8", 128, 32, 8, 32, 8, 3, 8),
    ("cpu", "8x8x16 + 4", 128, 16, 4, 16, 4, 3, 8),
    ("cpu", "32x32x3, 8 + 8 filters", 128, 3, 0, 8, 8, 3, 32),
]


def _grown(group: str, batch: int, sizes: tuple[tuple[int, int], ...]) -> list[Shape]:
    return [
        (f"{group} growth 1/{part}", f"{size}x{size}x{c} + {c // part}", batch, c, c // part, c, c // part, 3, size)
        for part in (16, 8, 4)
        for size, c in sizes
    ]


def _paper() -> list[Shape]:
    """The paper's convolutions at batch 128: conv1 (3 input channels), conv2 at 16x16, conv3 to conv5 at 8x8."""
    shapes: list[Shape] = []
    for w in (8, 16, 32):
        for p in (4, 8):
            shapes.append((f"paper + {p}", f"32x32x3, {w} + {p} filters", 128, 3, 0, w, p, 3, 32))
            shapes += [(f"paper + {p}", f"{s}x{s}x{w} + {p}", 128, w, p, w, p, 3, s) for s in (16, 8)]
    return shapes


ON_CUDA: list[Shape] = [
    *_grown("cifar", 512, ((32, 64), (16, 128), (8, 256))),
    *_grown("resnet50", 64, ((56, 64), (28, 128), (14, 256), (7, 512))),
    *_paper(),
]


def cases(settings: Settings) -> list[Case]:
    """The cases of the settings: bf16 channels_last on CUDA, float32 NCHW on a CPU, unless a dtype is asked for."""
    if settings.shapes:
        return [_own(settings, text) for text in settings.shapes]
    on_gpu = settings.device.type == "cuda"
    layout = "channels_last" if on_gpu else "contiguous"
    full = ON_CUDA if on_gpu else ON_CPU
    shapes = {"quick": QUICK, "small": SMALL, "full": full}[settings.size]
    kinds = ("planted",) if on_gpu else ("planted", "full")
    return [_case(settings, shape, layout, kind) for shape in shapes for kind in (kinds if shape[4] else ("none",))]


def _own(settings: Settings, text: str) -> Case:
    """The case of a `--shape`.

    Raises:
        ValueError: it does not have the form of `SHAPE_HELP`.
    """
    parts = [part.strip() for part in text.split(",")]
    words = {part for part in parts if not part.isdecimal()}
    layout = "channels_last" if "channels_last" in words else "contiguous"
    kinds = words - {"channels_last"}
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) != 7 or min(numbers[:2] + numbers[3:]) < 1 or len(kinds) > 1 or kinds - {"full", "planted", "none"}:
        raise ValueError(f"--shape of planted_conv2d must be {SHAPE_HELP}, got {text!r}")
    n, fi, pi, fo, po, k, size = numbers
    name = f"{size}x{size}, {fi} + {pi} to {fo} + {po}, kernel {k}"
    return _case(settings, ("own", name, n, fi, pi, fo, po, k, size), layout, kinds.pop() if kinds else "full")


def _case(settings: Settings, shape: Shape, layout: str, input_grad: str) -> Case:
    group, name, n, trunk_in, planted_in, trunk_out, planted_out, kernel, size = shape
    dtype = settings.dtype or (torch.bfloat16 if settings.device.type == "cuda" else torch.float32)
    sizes = Convolution(n, trunk_in, planted_in, trunk_out, planted_out, kernel, size, dtype.itemsize)
    columns = {
        "op": "planted_conv2d", "group": group, "shape": name, "batch": sizes.batch, "dtype": dtype_name(dtype),
        "layout": layout, "input_grad": input_grad,
    }  # fmt: skip
    how = arithmetic(settings.device, dtype)
    return Case(columns, lambda: prepare(settings, sizes, dtype, layout, input_grad, TOLERANCES[how]), how)


def prepare(
    settings: Settings, sizes: Convolution, dtype: torch.dtype, layout: str, input_grad: str, tolerance: float
) -> Problem:
    """The tensors of one case and everything that computes it."""
    t = Tensors(sizes, dtype, layout, settings.device)
    passes = [sizes.forward(), sizes.planted_backward(input_grad)]
    least = {BOTH: passes, BACKWARD: passes[1:]}

    def variant(name: str, role: str, forward: Callable[[Tensor], Tensor]) -> Variant:
        return differentiated(
            name, role, forward, t.input, t.trained(input_grad), upstream=t.upstream, passes=least,
            parameters=t.parameters(),
        )  # fmt: skip

    live, refused = implementations("planted_conv2d", settings)
    variants = [variant(impl, OURS, ours(t, input_grad, impl)) for impl in live]
    peers = {"split + cat": split(t, input_grad), "ATen slice": slices(t, input_grad)}
    variants += [variant(name, PEER, forward) for name, forward in peers.items()]
    masked = Masked(t, input_grad)
    variants.append(_masked(masked, "masked", BASELINE, sizes, masked.forward))
    if settings.compiled:
        variants += [variant(f"{name}, compiled", PEER, torch.compile(f)) for name, f in peers.items()]
        variants.append(_masked(masked, "masked, compiled", PEER, sizes, torch.compile(masked.forward)))
    return Problem(variants, lambda: _exact(t, input_grad), tolerance, refused=refused)


def ours(t: Tensors, input_grad: str, impl: str) -> Callable[[Tensor], Tensor]:
    """`planted_conv2d` with one `impl`."""
    return lambda x: planted_conv2d(
        x, t.weight, t.weight_out, t.weight_in, t.bias, t.bias_out, padding=t.padding, input_grad=input_grad, impl=impl
    )


def _masked(masked: Masked, name: str, role: str, sizes: Convolution, forward: Callable[[Tensor], Tensor]) -> Variant:
    passes = [sizes.forward(), sizes.masked_backward(masked.input_grad)]
    return differentiated(
        name, role, forward, masked.t.input, masked.trained(), upstream=masked.t.upstream,
        passes={BOTH: passes, BACKWARD: passes[1:]}, parameters=[masked.weight, masked.bias],
        comparable=masked.comparable,
    )  # fmt: skip


def _exact(t: Tensors, input_grad: str) -> Values:
    """Output and gradients in float64: plain convolutions of the blocks."""
    exact = t.double()
    trained = exact.trained(input_grad)
    output = split(exact, input_grad)(exact.input)
    return (output.detach(), *torch.autograd.grad(output, trained, exact.upstream))
