"""Rows that do not count: a target of ignore_index, a mask of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_cases import implementations
from paths import by, without_shortcuts
from torch import Tensor

from plantops import nn
from plantops.functional import distillation_loss, kl_div_logits

ALPHA, T, SMOOTH = 0.7, 2.0, 0.1


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 7, 11, dtype=torch.float64, generator=g).to(dtype) for _ in range(2))
    target = torch.randint(0, 11, (3, 7), generator=g)
    target[0, 4:] = target[2, 1:] = -100
    return student.requires_grad_(), teacher, target


def right(student: Tensor, teacher: Tensor, target: Tensor, reduction: str, ignore_index: int = -100) -> Tensor:
    """The two-line formula of torch over the rows that count; torch's own cross_entropy says what "counts" means."""
    counts = target != ignore_index
    kl = F.kl_div((student / T).log_softmax(-1), (teacher / T).softmax(-1), reduction="none").sum(-1)
    ce = F.cross_entropy(
        student.reshape(-1, 11), target.reshape(-1), reduction="none", ignore_index=ignore_index, label_smoothing=SMOOTH
    ).view(target.shape)
    rows = ALPHA * T * T * torch.where(counts, kl, 0) + (1 - ALPHA) * ce
    return rows if reduction == "none" else rows.sum() / (counts.sum() if reduction == "mean" else 1)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("impl", ["auto", *implementations("distillation_loss")])
def test_distillation(impl: str, reduction: str) -> None:
    student, teacher, target = problem()
    config: dict[str, Any] = {"alpha": ALPHA, "temperature": T, "label_smoothing": SMOOTH, "reduction": reduction}

    def call(**options: Any) -> tuple[Tensor, Tensor]:
        labels = options.pop("target", target)
        loss = distillation_loss(student, teacher, labels, **config, **options, impl=impl)
        return loss, torch.autograd.grad(loss, student, torch.ones_like(loss))[0]

    loss = right(student, teacher, target, reduction)
    expected = (loss, torch.autograd.grad(loss, student, torch.ones_like(loss))[0])
    other = torch.where(target == -100, 3, torch.where(target == 3, 4, target))
    loss = right(student, teacher, other, reduction, 3)
    expected_other = (loss, torch.autograd.grad(loss, student, torch.ones_like(loss))[0])
    for way in (lambda c: c(), lambda c: by(without_shortcuts, c)):
        for ours, theirs in zip(way(call), expected, strict=True):
            close(ours, theirs)
        for ours, theirs in zip(way(lambda: call(target=other, ignore_index=3)), expected_other, strict=True):
            close(ours, theirs)
        for dtype in (torch.int32, torch.int16, torch.int8):
            assert torch.equal(way(lambda: call(target=target.to(dtype)))[0], way(call)[0])  # noqa: B023
        with pytest.raises(ValueError, match=r"target: expected class indices in \[0, 11\), got -100"):
            way(lambda: call(ignore_index=None))
        with pytest.raises(ValueError, match=r"target: expected class indices in \[0, 11\), got -1"):
            way(lambda: call(target=target.clamp(min=-1)))


@pytest.mark.parametrize("impl", ["auto", *implementations("distillation_loss")])
def test_no_row_counts(impl: str) -> None:
    """What torch's cross_entropy gives: NaN, with a gradient of zero."""
    student, teacher, _ = problem()
    target = torch.full((3, 7), -100)
    theirs = F.cross_entropy(student.flatten(0, 1), target.flatten())
    ours = distillation_loss(student, teacher, target, alpha=ALPHA, temperature=T, impl=impl)
    assert ours.isnan()
    assert theirs.isnan()
    for loss in (ours, theirs):
        assert not torch.autograd.grad(loss, student)[0].any()
    assert distillation_loss(student, teacher, target, alpha=ALPHA, temperature=T, reduction="sum", impl=impl) == 0


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("impl", ["auto", *implementations("kl_div_logits")])
def test_a_mask_of_rows(impl: str, reduction: str) -> None:
    """The loss of the rows that count, whatever the others hold."""
    student, teacher, target = problem()
    mask = target != -100
    rows, others = student[mask], teacher[mask]
    plain = F.kl_div((rows / T).log_softmax(-1), (others / T).softmax(-1), reduction=reduction)
    poisoned, poison = student.detach().clone(), teacher.clone()
    poisoned[~mask], poison[~mask] = float("nan"), float("inf")
    poisoned.requires_grad_()
    ours = kl_div_logits(poisoned, poison, T, reduction, mask=mask, impl=impl)
    (gradient,) = torch.autograd.grad(ours.sum(), poisoned)
    close(gradient, torch.autograd.grad(plain.sum(), student)[0])
    if reduction == "none":
        assert not ours[~mask].any()
        ours = ours[mask]
    close(ours, plain)
    assert torch.equal(
        nn.KLDivLogitsLoss(T, reduction, impl)(student, teacher, mask),
        kl_div_logits(student, teacher, T, reduction, mask=mask, impl=impl),
    )


def test_all_rows_count_and_none() -> None:
    student, teacher, _ = problem()
    rows, others = student.flatten(0, 1), teacher.flatten(0, 1)
    every = torch.ones(21, dtype=torch.bool)
    close(kl_div_logits(rows, others, T, mask=every), kl_div_logits(rows, others, T))
    nothing = kl_div_logits(rows, others, T, mask=~every)
    assert nothing.isnan()
    assert kl_div_logits(rows, others, T, "sum", mask=~every) == 0


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(3, 7), TypeError), (torch.ones(3, 7, dtype=torch.long), TypeError),
        (torch.ones(7, 3, dtype=torch.bool), ValueError), (torch.tensor(True), ValueError), ("all", TypeError),
    ],
)  # fmt: skip
def test_what_is_no_mask(mask: Any, error: type[Exception]) -> None:
    student, teacher, _ = problem()
    with pytest.raises(error, match=r"^mask: expected .* got"):
        kl_div_logits(student, teacher, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_and_compiled(dtype: torch.dtype) -> None:
    """A compiled call does not look at the labels; with none ignored it is the loss as before."""
    student, teacher, target = problem(dtype)

    def call(s: Tensor, labels: Tensor) -> Tensor:
        return distillation_loss(s, teacher, labels, alpha=ALPHA, temperature=T)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for labels in (target, target.clamp(min=0)):
        one, other = compiled(student, labels), call(student, labels)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(torch.autograd.grad(one, student), torch.autograd.grad(other, student))
    exact = student.detach().double().requires_grad_()
    expected = distillation_loss(exact, teacher.double(), target, alpha=ALPHA, temperature=T)
    torch.testing.assert_close(call(student, target).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_module() -> None:
    student, teacher, target = problem()
    loss = nn.DistillationLoss(ALPHA, T, SMOOTH)
    close(loss(student, teacher, target), right(student, teacher, target, "mean"))
    zero = nn.DistillationLoss(ALPHA, T, SMOOTH, ignore_index=0)
    assert "ignore_index=0" in repr(zero)
    labels = target.clamp(min=0)
    close(zero(student, teacher, labels), right(student, teacher, labels, "mean", 0))


def test_in_transforms_too() -> None:
    student, teacher, target = problem()

    def one(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return distillation_loss(s, t, y, alpha=ALPHA, temperature=T, label_smoothing=SMOOTH)

    ours = torch.vmap(torch.func.grad(one))(student.detach(), teacher, target)
    for i in range(3):
        (expected,) = torch.autograd.grad(right(student[i], teacher[i], target[i], "mean"), student)
        close(ours[i], expected[i])
