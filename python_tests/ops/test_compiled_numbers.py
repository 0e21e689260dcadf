"""A temperature, a share or a strength that changes from call to call: two compilations, whatever the schedule."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from plantops import functional as PF
from plantops import nn

TEACHER, LABELS = torch.randn(6, 5), torch.randint(0, 5, (6,))
SIMILAR = torch.rand(6, 6)
SCHEDULE = [0.9, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35]  # more values than torch would compile for

CALLS: dict[str, Callable[[Tensor, float], Any]] = {
    "temperature": lambda s, n: PF.kl_div_logits(s, TEACHER, 4 * n),
    "pointwise": lambda s, n: PF.kl_div_logits(s, TEACHER, n, "none").square().sum(),
    "alpha": lambda s, n: PF.distillation_loss(s, TEACHER, LABELS, alpha=n, temperature=2.0, label_smoothing=n / 2),
    "strength": lambda s, n: PF.group_sparsity([s], "group_lasso", strength=n, l1=0.1),
    "exaggeration": lambda s, n: PF.qsne_kl(s[:, :2], SIMILAR, 2.0, exaggeration=n),
}
FUSED: dict[str, Callable[[Tensor, float], Any]] = {
    "kl": lambda s, n: PF.kl_div_logits_value_and_grad(s, TEACHER, n),
    "sparsity": lambda s, n: PF.group_sparsity_value_and_grad([s], "l1", strength=n),
    "qsne": lambda s, n: PF.qsne_kl_value_and_grad(s[:, :2], SIMILAR, 1 + n),
}


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture
def counter() -> CompileCounterWithBackend:
    torch._dynamo.reset()
    return CompileCounterWithBackend("aot_eager")


@pytest.mark.parametrize("name", CALLS)
def test_a_schedule_compiles_twice(name: str, counter) -> None:
    call = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for number in SCHEDULE:
        both = []
        for function in (compiled, call):
            student = torch.linspace(-1, 1, 30).reshape(6, 5).requires_grad_()
            loss = function(student, number)
            both.append((loss, *torch.autograd.grad(loss, student)))
        close(*both)
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", FUSED)
def test_without_autograd_too(name: str, counter) -> None:
    compiled, student = torch.compile(FUSED[name], fullgraph=True, backend=counter), torch.randn(6, 5)
    for number in SCHEDULE:
        close(compiled(student, number), FUSED[name](student, number))
    assert counter.frame_count == 2


def test_a_temperature_in_whole_steps(counter) -> None:
    def call(s: Tensor, t: int) -> Tensor:
        return PF.kl_div_logits(s, TEACHER, t)

    compiled, student = torch.compile(call, fullgraph=True, backend=counter), torch.randn(6, 5)
    for temperature in range(20, 2, -1):
        close(compiled(student, temperature), call(student, temperature))
    assert counter.frame_count == 2


def test_a_number_that_stays_is_a_constant_of_the_graph(counter) -> None:
    """The kernel is called as it is, without tensors for its factors."""
    compiled = torch.compile(CALLS["temperature"], fullgraph=True, backend=counter)
    compiled(torch.randn(6, 5), 0.5)
    targets = {node.target for node in counter.graphs[0].graph.nodes if node.op == "call_function"}
    assert targets == {torch.ops.plantops.kl_div_logits.default, operator.getitem}


def test_a_wrong_number_is_refused_while_compiling_too(counter) -> None:
    compiled = torch.compile(lambda s, t: PF.kl_div_logits(s, TEACHER, t), backend=counter)
    for temperature in (3.0, 2.0, -1.0):
        if temperature > 0:
            compiled(torch.randn(6, 5), temperature)
            continue
        with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got -1"):
            compiled(torch.randn(6, 5), temperature)


def test_the_temperature_of_a_module(counter) -> None:
    """torch compiles a module's attributes in as constants unless told that they change: the loss is right anyway."""
    loss, student = nn.KLDivLogitsLoss(), torch.randn(6, 5)
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for number in SCHEDULE[:4]:
        loss.temperature = number
        close(compiled(student, TEACHER), loss(student, TEACHER))
