"""What the common loss tests do not reach in Triton: rows of many blocks, 64-bit offsets, a refusal with its reason."""

import dataclasses

import pytest
import torch
from bounds import assert_as_good_as_torch
from loss_cases import logits
from torch import Tensor

from plantops.functional import kl_div_logits
from plantops.ops import _registry, _triton

pytest.importorskip("triton")
if _triton.why_not("cpu"):
    pytest.skip(_triton.why_not("cpu"), allow_module_level=True)

from plantops.ops._row_kernels import STREAMED, WHOLE_ROWS, RowConfig, row_config
from plantops.ops.distillation_loss import aten as distillation_aten
from plantops.ops.distillation_loss import reference as distillation_reference
from plantops.ops.distillation_loss import triton as distillation
from plantops.ops.kl_div_logits import aten as kl_aten
from plantops.ops.kl_div_logits import reference as kl_reference
from plantops.ops.kl_div_logits import triton as kl

INF = float("inf")
BLOCKS = RowConfig(rows=4, block=16, num_warps=4)  # 50 classes are four blocks, the last with 2 of them


def rising(shape: tuple[int, int], seed: int, up: bool) -> Tensor:
    """Logits whose maximum moves from block to block, or is in the first one."""
    x = logits(shape, torch.float32, seed) + torch.linspace(-20, 20, shape[1])
    return x if up else x.flip(-1)


def kl_results(module, student: Tensor, teacher: Tensor, reduction: str, **config) -> list[Tensor]:
    loss, lse_s, lse_t = module.forward(student, teacher, 1.7, reduction, **config)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).to(loss.dtype).view(loss.shape)
    grad = module.backward(upstream, student, teacher, lse_s, lse_t, 1.7, reduction, **config)
    return [loss, lse_s, lse_t, grad, *module.value_and_grad(student, teacher, 1.7, reduction, **config)]


def distillation_results(module, student: Tensor, teacher: Tensor, reduction: str, **config) -> list[Tensor]:
    target = torch.arange(student.shape[0]) * 7 % student.shape[1]
    rest = (0.6, 1.7, 0.1, reduction)
    loss, *sums = module.forward(student, teacher, target, *rest, **config)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).to(loss.dtype).view(loss.shape)
    return [loss, *sums, module.backward(upstream, student, teacher, target, *sums, *rest, **config)]


OPS = {
    "kl_div_logits": (kl_results, kl, kl_aten, kl_reference),
    "distillation_loss": (distillation_results, distillation, distillation_aten, distillation_reference),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_rows_of_many_blocks(op: str, reduction: str, offset: float):
    results, ours, aten, reference = OPS[op]
    for up in (True, False):
        student, teacher = rising((5, 50), 1, up) + offset, rising((5, 50), 2, not up) - offset
        exact = results(reference, student.double(), teacher.double(), reduction)
        theirs = results(aten, student, teacher, reduction)
        mine = results(ours, student, teacher, reduction, config=BLOCKS)
        for index, values in enumerate(zip(mine, theirs, exact, strict=True)):
            assert_as_good_as_torch(*values, f"result {index}")


@pytest.mark.parametrize("op", OPS)
def test_blocks_that_are_masked_whole(op: str):
    """Both rows of a pair at -inf over the first block, then over the last: neither may become NaN."""
    results, ours, _, reference = OPS[op]
    for masked in (slice(0, 16), slice(32, 50)):
        student, teacher = logits((3, 50), torch.float64, 3), logits((3, 50), torch.float64, 4)
        student[:, masked] = teacher[:, masked] = -INF
        mine = results(ours, student, teacher, "sum", config=BLOCKS)
        for a, b in zip(mine, results(reference, student, teacher, "sum"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_student_masked_where_the_teacher_is_not_is_infinite():
    student, teacher = logits((2, 50), torch.float32, 5), logits((2, 50), torch.float32, 6)
    student[0, 20] = -INF
    loss, *_ = kl.forward(student, teacher, 1.0, "sum", config=BLOCKS)
    assert loss == INF
    teacher[0, 20] = -INF
    loss, *_ = kl.forward(student, teacher, 1.0, "sum", config=BLOCKS)
    torch.testing.assert_close(loss, kl_reference.forward(student, teacher, 1.0, "sum")[0])


@pytest.mark.parametrize("op", OPS)
def test_offsets_of_64_bits_give_the_same(op: str, monkeypatch):
    results, ours, _, _ = OPS[op]
    student, teacher = logits((3, 40), torch.float32, 7).T.contiguous().T, logits((3, 40), torch.float32, 8)
    narrow = results(ours, student, teacher, "none")
    with _triton.recording() as launches:
        results(ours, student, teacher, "none")
    assert not any(launch.constants.get("WIDE") for launch in launches)
    monkeypatch.setattr(_triton, "INT32_ELEMENTS", 100)
    with _triton.recording() as launches:
        results(ours, student, teacher, "none")
    assert all(launch.constants["WIDE"] for launch in launches)
    for a, b in zip(narrow, results(ours, student, teacher, "none"), strict=True):
        assert torch.equal(a, b)


def test_configurations_hold_their_rows():
    assert [row_config(4096, classes, torch.float32).whole(classes) for classes in (2, 1000, 4096, 4097)] == [
        True, True, True, False,
    ]  # fmt: skip
    assert row_config(1, 10, torch.float32).rows == 1
    assert row_config(4096, 10, torch.float32) == RowConfig(rows=32, block=16, num_warps=4)
    widest = WHOLE_ROWS[-1][0]
    assert row_config(8, widest, torch.float64) == STREAMED  # twice the registers


def test_without_a_gpu_or_the_interpreter_it_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(NotImplementedError, match=r"kl_div_logits: impl='triton' on cpu: .*TRITON_INTERPRET=1"):
        kl_div_logits(torch.zeros(2, 3), torch.zeros(2, 3), impl="triton")
    assert not _registry.live("kl_div_logits", "triton", "cpu")
    assert _registry.live("kl_div_logits", "triton", "cuda")
    monkeypatch.setattr(_triton, "installed", lambda: False)
    assert "pip install triton" in _registry.why_not("kl_div_logits", "triton", "cuda")
    monkeypatch.setitem(
        _registry._ops, "none", dataclasses.replace(_registry._ops["kl_div_logits"], implementations={})
    )
    assert "no triton kernel" in _registry.why_not("none", "triton", "cuda")
