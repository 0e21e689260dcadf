"""torch's FLOP counter sees the planted ops: forward as of the merged model, backward what is asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from conv_cases import EPILOGUES, GROUPS, Case, Problem
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import plantops
from plantops.functional import planted_linear


def counted(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


CASES = [Case(), Case(stride=2, size=(9, 8)), Case(dilation=2), Case(pi=0, start=None), Case(po=0), *EPILOGUES[:4],
         *GROUPS[:4]]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolutions(case: Case) -> None:
    problem = Problem.of(case, torch.float32)
    trained = problem.trained
    forward = counted(lambda: problem.joined())
    assert counted(lambda: problem.planted("auto")) == forward > 0
    n, pixels = case.batch, problem.joined(before="addend")[0, 0].numel()
    inn = trained["weight_in"].numel() if "weight_in" in trained else 0
    out, frozen = trained["weight_out"].numel(), problem.weight.numel()
    columns = case.pi if case.groups == 1 else case.pi // (case.po // (case.fo // case.groups))
    read = out * columns // trained["weight_out"].shape[1] if case.po and case.pi else 0  # by planted channels
    expected = {
        ("weight_out",): out,
        ("weight_in",): inn,
        ("bias_out",): 0,
        ("input",): frozen + out + inn,
        tuple(trained): frozen + 2 * (out + inn),
    }
    for wanted, weights in expected.items():
        if not set(wanted) <= set(trained):
            continue
        for impl, input_grad in (("auto", "full"), ("aten", "planted")):
            for name, tensor in trained.items():
                tensor.requires_grad_(name in wanted)
            y = problem.planted(impl, input_grad=input_grad)
            if input_grad == "planted" and "input" in wanted:
                weights -= frozen + out + inn - (inn + read)
            assert counted(lambda: y.sum().backward()) == 2 * n * pixels * weights, (wanted, input_grad)  # noqa: B023


@pytest.mark.parametrize("lead", [(6,), (2, 3), ()], ids=str)
def test_linear_layers(lead: tuple[int, ...]) -> None:
    rows = torch.Size(lead).numel()
    x, weight, out, inn = torch.randn(*lead, 7), torch.randn(4, 5), torch.randn(3, 7), torch.randn(4, 2)
    assert counted(lambda: planted_linear(x, weight, out, inn)) == 2 * rows * 7 * 7
    for input_grad, of_input in (("full", 49), ("planted", 14), ("none", 0)):
        leaf = x.clone().requires_grad_()
        y = planted_linear(leaf, weight, out.requires_grad_(), inn.requires_grad_(), input_grad=input_grad)
        assert counted(lambda: y.sum().backward()) == 2 * rows * (21 + 8 + of_input)  # noqa: B023


def test_a_planted_network_beside_the_merged_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 10))
    x = torch.randn(2, 3, 8, 8)
    planted = plantops.plant(model, plantops.trace(model, x)["0"], 4)
    merged = plantops.merge(planted)

    def step(m: nn.Module) -> Tensor:
        loss = m(x).square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert counted(lambda: planted(x)) == counted(lambda: merged(x))
    forward = counted(lambda: planted(x))
    saved = counted(lambda: step(merged)) - counted(lambda: step(planted))
    first, second = 2 * 36 * 2 * 27, 2 * 16 * 2 * 9 * 16  # N x pixels x 2 x weights of one filter, of one input channel
    # Not computed: old filters of the first layer (16 of 20), old inputs of the second (16 of 20), the trunk's head.
    assert saved >= 16 * first + 16 * second
    assert counted(lambda: step(planted)) < 3 * forward


@pytest.mark.parametrize("order", [("plantops.functional", "torch.utils.flop_counter"),
                                   ("torch.utils.flop_counter", "plantops.functional")], ids=str)  # fmt: skip
def test_formulas_are_there_in_either_order_of_imports(order: tuple[str, str]) -> None:
    code = f"""
import importlib
importlib.import_module({order[0]!r})
importlib.import_module({order[1]!r})
from torch.utils.flop_counter import flop_registry
names = {{str(op) for op in flop_registry if "plantops" in str(op)}}
assert names == {{"plantops.planted_conv2d", "plantops.planted_conv2d_backward", "plantops.planted_linear",
                 "plantops.planted_linear_backward"}}, names
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
