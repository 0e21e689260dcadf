"""planted_linear in Triton: its kernels are the convolution's over views, and the flag of matrix products counts."""

import pytest
import torch

from plantops.ops import _triton
from plantops.ops._precision import of_convolutions, of_matrix_products

pytest.importorskip("triton")
if _triton.why_not("cpu"):
    pytest.skip(_triton.why_not("cpu"), allow_module_level=True)

from plantops.ops.planted_linear import triton as ours

ROWS, OLD, NEW = 48, 64, 8


def blocks(dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    """Input, weight, weight_out and weight_in of a layer whose planted features lie in the middle."""
    sizes = ((ROWS, OLD + NEW), (OLD, OLD), (NEW, OLD + NEW), (OLD, NEW))
    return tuple(torch.empty(*size, dtype=dtype, device="meta") for size in sizes)


def launches(dtype: torch.dtype = torch.bfloat16) -> list[_triton.Launch]:
    """What a forward and a backward with every gradient start."""
    x, weight, weight_out, weight_in = blocks(dtype)
    with _triton.recording() as recorded:
        y = ours.forward(x, weight, weight_out, weight_in, None, weight_out.new_empty(NEW), 16, None, "relu")
        ours.backward(y, x, weight, weight_out, weight_in, y, 16, "relu", "planted", (True, True, True, True, False))
    return recorded


def test_rows_are_read_in_vectors_and_in_place():
    recorded = launches()
    names = [launch.kernel.__name__ for launch in recorded]
    assert names == ["pack_kernel", "forward_kernel", "weight_kernel", "reduce_kernel", "weight_kernel",
                     "reduce_kernel", "pack_kernel", "input_kernel"]  # fmt: skip
    assert {launch.constants["X_VECTOR"] for launch in recorded if "X_VECTOR" in launch.constants} == {8}
    x = torch.arange(12.0).view(3, 4)
    view = ours.image(x[:, 1:3])
    assert view.shape == (1, 2, 3, 1)
    assert view.data_ptr() == x[:, 1:].data_ptr()
    assert torch.equal(view[0, :, :, 0].t(), x[:, 1:3])


def test_float32_follows_the_flag_of_matrix_products(monkeypatch):
    assert of_matrix_products(torch.bfloat16) == "ieee"  # it has no choice
    flags, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = flags.fp32_precision, convolutions.fp32_precision
    try:
        for mine, theirs in (("tf32", "ieee"), ("ieee", "tf32")):
            flags.fp32_precision, convolutions.fp32_precision = mine, theirs
            assert (of_matrix_products(), of_convolutions()) == (mine, theirs)
            assert {x.constants["PRECISION"] for x in launches(torch.float32) if "PRECISION" in x.constants} == {mine}
    finally:
        flags.fp32_precision, convolutions.fp32_precision = before
