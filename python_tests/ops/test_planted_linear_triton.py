"""planted_linear in Triton: its kernels are the convolution's over views, and the flag of matrix products counts."""

import pytest
import torch

from plantops.ops import _triton
from plantops.ops._precision import of_convolutions, of_matrix_products

pytest.importorskip("triton")
if _triton.why_not("cpu"):
    pytest.skip(_triton.why_not("cpu"), allow_module_level=True)

from plantops.ops.planted_linear import triton as ours

OLD, NEW = 64, 8


def tensors(rows: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Input, weight, weight_out and weight_in of a layer whose planted features lie in the middle."""
    sizes = ((rows, OLD + NEW), (OLD, OLD), (NEW, OLD + NEW), (OLD, NEW))
    return tuple(torch.empty(*size, dtype=dtype, device=device) for size in sizes)


def launches(x, weight, weight_out, weight_in, grad) -> list[_triton.Launch]:
    """What a forward and a backward with every gradient start."""
    with _triton.recording() as recorded:
        y = ours.forward(x, weight, weight_out, weight_in, None, weight_out.new_empty(NEW), 16, None, "relu")
        ours.backward(grad, x, weight, weight_out, weight_in, y, 16, "relu", "planted", (True, True, True, True, True))
    return recorded


@pytest.mark.parametrize("rows", [1, 48])
def test_rows_are_read_in_vectors_and_in_place(rows: int):
    x, *blocks = tensors(rows, torch.bfloat16, "cpu")
    grad = torch.empty(rows, OLD + NEW, dtype=torch.bfloat16)
    recorded = launches(x, *blocks, grad)
    names = [launch.kernel.__name__ for launch in recorded]
    assert names == ["pack_kernel", "forward_kernel", "addend_kernel", "weight_kernel", "reduce_kernel",
                     "weight_kernel", "reduce_kernel", "pack_kernel", "input_kernel"]  # fmt: skip
    vectors = [value for launch in recorded for name, value in launch.constants.items() if name.endswith("VECTOR")]
    assert len(vectors) == 10
    assert set(vectors) == {8}
    forward, addend, first, second = recorded[1], recorded[2], recorded[3], recorded[5]
    assert forward.args[0].data_ptr() == first.args[0].data_ptr() == x.data_ptr()
    assert second.args[0].data_ptr() == x[:, 16:].data_ptr()
    assert addend.args[0].data_ptr() == grad.data_ptr()


def test_results_are_dense_rows_whatever_comes_in():
    x, *blocks = tensors(48, torch.float32, "cpu")
    transposed = torch.randn(OLD + NEW, 48).t()
    with _triton.recording() as recorded:
        ours.forward(transposed, *blocks, None, None, 16, None, "none")
        ours.backward(
            torch.ones(()).expand(48, OLD + NEW),
            x,
            *blocks,
            None,
            16,
            "none",
            "full",
            (True, False, False, False, False),
        )
    results = (recorded[1].args[5], recorded[-1].args[4])
    for result in results:
        assert result.shape == (1, OLD + NEW, 48, 1)
        assert result.stride() == (48 * (OLD + NEW), 1, OLD + NEW, OLD + NEW)


def test_float32_follows_the_flag_of_matrix_products():
    assert of_matrix_products(torch.bfloat16) == "ieee"  # it has no choice
    flags, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = flags.fp32_precision, convolutions.fp32_precision
    x, *blocks = tensors(48, torch.float32, "meta")
    try:
        for mine, theirs in (("tf32", "ieee"), ("ieee", "tf32")):
            flags.fp32_precision, convolutions.fp32_precision = mine, theirs
            assert (of_matrix_products(), of_convolutions()) == (mine, theirs)
            found = {launch.constants.get("PRECISION") for launch in launches(x, *blocks, torch.empty_like(x))}
            assert found == {None, mine}
    finally:
        flags.fp32_precision, convolutions.fp32_precision = before
