"""The variants of the benchmarks compute the same thing, and one that does not is never timed."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from plantops.bench import group_sparsity, losses, planted_conv2d, planted_linear, qsne_kl
from plantops.bench.case import BASELINE, BOTH, OURS, PEER, Problem, Variant, error_of, verified
from plantops.bench.memory import kept_bytes
from plantops.bench.runner import Settings, measured
from plantops.bench.timing import Timing
from plantops.bench.work import Ceilings, Work

CPU = torch.device("cpu")
SETTINGS = Settings(CPU, compiled=False, impls=("auto", "reference", "aten"))


def variant(name, values, role=OURS, passes=()):
    return Variant(name, role, lambda: None, values, {BOTH: passes})


def refuse():
    raise NotImplementedError("only float32")


def crash():
    raise RuntimeError("out\nof luck")


def test_only_what_is_right_is_timed():
    exact = (torch.tensor([3.0, 4.0], dtype=torch.float64),)
    found = [
        variant("right", lambda: (torch.tensor([3.0, 4.0]),)),
        variant("near", lambda: (torch.tensor([3.0, 4.0004]),)),
        variant("off", lambda: (torch.tensor([3.0, 4.5]),)),
        variant("nan", lambda: (torch.tensor([3.0, float("nan")]),)),
        variant("short", lambda: (torch.tensor([3.0]),)),
        variant("refuses", refuse),
        variant("crashes", crash),
        variant("rounding peer", lambda: (torch.tensor([3.0, 4.5]),), PEER),
        variant("wrong peer", lambda: (torch.tensor([3.0, 6.0]),), PEER),
    ]
    good, reasons = verified(Problem(found, lambda: exact, 1e-4, 0.2, {"triton": "no GPU"}))
    assert [v.name for v in good] == ["right", "near", "rounding peer"]
    assert reasons == {
        "triton": "not available: no GPU",
        "off": "wrong: relative error 1.0e-01, allowed 1e-04",
        "nan": "wrong: relative error nan, allowed 1e-04",
        "short": "failed: ValueError: shape [1], expected [2]",
        "refuses": "not available: NotImplementedError: only float32",
        "crashes": "failed: RuntimeError: out of luck",
        "wrong peer": "wrong: relative error 4.0e-01, allowed 2e-01",
    }


def test_the_error_is_the_largest_of_all_tensors():
    exact = (torch.tensor([1.0, 1.0]), torch.tensor([2.0]))
    assert error_of((torch.tensor([1.0, 1.0]), torch.tensor([2.5])), exact) == pytest.approx(0.25)
    assert error_of(exact, exact) == 0.0


@pytest.mark.parametrize("shape", ["2,4,2,3,2,3,6,planted", "2,4,2,3,2,3,6,full,channels_last", "2,4,2,3,2,1,5,none",
                                   "2,3,0,4,2,3,6,none"])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_variant_of_a_convolution_is_right(shape: str, dtype: torch.dtype):
    [case] = planted_conv2d.cases(dataclasses.replace(SETTINGS, shapes=(shape,), dtype=dtype))
    problem = case.prepare()
    good, reasons = verified(problem)
    assert reasons == {}
    assert [v.name for v in good] == ["auto", "reference", "aten", "split + cat", "ATen slice", "masked"]
    layout = torch.channels_last if "channels_last" in shape else torch.contiguous_format
    assert good[0].source.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("kind", ["planted", "full", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_variant_of_a_linear_layer_is_right(kind: str, dtype: torch.dtype):
    settings = dataclasses.replace(SETTINGS, shapes=(f"7,5,3,9,2,{kind}",), dtype=dtype)
    [case] = planted_linear.cases(settings)
    good, reasons = verified(case.prepare())
    assert reasons == {}
    assert [v.name for v in good] == ["auto", "reference", "aten", "split + cat", "masked"]
    for wrong in ("7,5,3,9", "7,5,3,9,2,some", "0,5,3,9,2"):
        with pytest.raises(ValueError, match="--shape of planted_linear must be ROWS"):
            planted_linear.cases(dataclasses.replace(settings, shapes=(wrong,)))


@pytest.mark.parametrize("op", [losses.KL, losses.DISTILLATION])
def test_every_variant_of_a_loss_is_right(op: str):
    [case] = losses.cases(dataclasses.replace(SETTINGS, shapes=(f"{op}:7x5",)))
    good, reasons = verified(case.prepare())
    assert reasons == {}
    assert {"auto", "reference", "aten", "eager"} <= {v.name for v in good}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_variant_of_the_regularisers_is_right(dtype: torch.dtype):
    settings = dataclasses.replace(SETTINGS, shapes=("2x3",), dtype=dtype)
    for case in group_sparsity.cases(settings):
        good, reasons = verified(case.prepare())
        assert reasons == {}
        assert {"auto", "reference", "aten", "value_and_grad aten", "eager"} <= {v.name for v in good}


@pytest.mark.parametrize("shape", ["30,1", "30,2", "21,2.5"])
def test_every_variant_of_qsne_is_right(shape: str):
    pytest.importorskip("sklearn")
    [case] = qsne_kl.cases(dataclasses.replace(SETTINGS, shapes=(shape,)))
    good, reasons = verified(case.prepare())
    assert reasons == {}
    names = {"auto", "reference", "aten", "eager"} | ({"sklearn"} if shape.endswith(",2") else set())
    assert {v.name for v in good} == names


def test_all_penalties_have_a_formula():
    full = group_sparsity.cases(dataclasses.replace(SETTINGS, size="full"))
    assert {case.columns["penalty"] for case in full} == set(group_sparsity.FORMULAS)


@pytest.mark.parametrize("op", [losses.KL, losses.DISTILLATION])
def test_the_exact_loss_is_torch_in_float64_whatever_the_blocks(op: str):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(9, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    target = torch.randint(6, (9,), generator=generator)
    logits = losses.Logits(student.requires_grad_(), teacher, target)
    formula = losses.torch_kl if op == losses.KL else losses.torch_distillation
    loss = formula(student, teacher, target)
    (gradient,) = torch.autograd.grad(loss, student)
    for elements in (1, 12, 1000):
        value, slope = losses.exact(op, logits, elements)
        torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(slope, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("text", ["3", "axb", "0x5", "4x1", "nll:4x5"])
def test_a_shape_of_a_loss_that_cannot_be_read(text: str):
    with pytest.raises(ValueError, match=r"--shape of losses must be .*ROWSxCLASSES.*got"):
        losses.cases(dataclasses.replace(SETTINGS, shapes=(text,)))


@pytest.mark.parametrize("text", ["1,2,3", "0,4,2,3,2,3,6", "2,4,2,3,2,3,6,half", "2,4,2,3,2,3,6,full,none"])
def test_a_shape_of_a_convolution_that_cannot_be_read(text: str):
    with pytest.raises(ValueError, match=r"--shape of planted_conv2d must be N,F_in.*got"):
        planted_conv2d.cases(dataclasses.replace(SETTINGS, shapes=(text,)))


@pytest.mark.parametrize(("module", "text"), [(group_sparsity, "3"), (group_sparsity, "0x4"), (qsne_kl, "30"),
                                              (qsne_kl, "30,3"), (qsne_kl, "1,2")])  # fmt: skip
def test_a_shape_of_another_op_that_cannot_be_read(module, text: str):
    with pytest.raises(ValueError, match=rf"--shape of {module.__name__.split('.')[-1]} must be .*got '{text}'"):
        module.cases(dataclasses.replace(SETTINGS, shapes=(text,)))


def test_kept_bytes_counts_what_the_backward_needs():
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(16, 8, requires_grad=True)
    assert kept_bytes(lambda x: F.linear(x, weight), x, [weight]) == x.nbytes  # the input, for the weight's gradient
    assert kept_bytes(lambda x: F.linear(x, weight.detach()), x, [weight]) == 0
    assert kept_bytes(lambda x: x.exp(), x) == 0  # the output lives anyway
    assert kept_bytes(lambda x: x.exp().sum(), x) == x.nbytes
    assert kept_bytes(lambda x: F.linear(x, weight * 2), x, [weight]) == x.nbytes + weight.nbytes


def test_a_compact_copy_of_the_planted_input_is_all_that_is_kept():
    """16 + 2 input channels, no new filters: the in block's gradient needs two channels."""
    x = torch.randn(2, 18, 5, 5, requires_grad=True)
    weight, weight_in = torch.randn(4, 16, 3, 3), torch.randn(4, 2, 3, 3, requires_grad=True)

    def forward(x):
        from plantops.functional import planted_conv2d

        return planted_conv2d(x, weight, None, weight_in, padding=1, input_grad="planted", impl="aten")

    assert kept_bytes(forward, x, [weight, weight_in]) == x[:, 16:].numel() * 4


def test_rates_and_ratios_of_a_row():
    ceilings = Ceilings(copy=1000.0, matmul={"float32": 4000.0})
    work, twice = [Work(800.0, 100.0), Work(0.0, 100.0)], [Work(1600.0, 200.0), Work(0.0, 200.0)]
    variants = [
        variant("native", tuple, OURS, work),
        variant("slice", tuple, PEER, work),
        variant("masked", tuple, BASELINE, twice),
        variant("aten", tuple, OURS, work),
    ]
    times = {"native": 0.5, "slice": 1.0, "masked": 2.0}
    timings = {name: Timing(0.9 * p50, p50, 1.1 * p50, 7, 3) for name, p50 in times.items()}
    rows = {row["variant"]: row for row in measured(variants, timings, BOTH, ceilings, "float32")}
    assert list(rows) == ["native", "slice", "masked"]
    native = rows["native"]
    assert native["floor_ms"] == 300.0  # 800 FLOPs at 4000/s, then 100 bytes at 1000/s
    assert native["floor_over_this"] == 0.6
    assert (native["gb_per_s"], native["of_copy"]) == (0.0, 0.4)
    assert native["of_matmul"] == 0.4
    assert (native["best_peer"], native["best_peer_over_this"]) == ("slice", 2.0)
    assert native["best_peer_over_floor"] == pytest.approx(1 / 0.3, abs=1e-3)
    assert (native["baseline"], native["baseline_over_this"], native["baseline_over_this_by_count"]) == ("masked", 4, 2)
    assert rows["masked"]["of_copy"] == 0.2
    assert (native["rounds"], native["calls"]) == (7, 3)
