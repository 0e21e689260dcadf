"""The compiled CPU kernels of planted_conv2d: against float64, on every instruction set, bit for bit again."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plantops.ops import _registry
from plantops.ops.planted_conv2d.schema import backward_op, forward_op
from python_tests.ops.bounds import assert_as_good_as_torch, assert_close_in_norm
from python_tests.ops.conv_cases import LAYOUTS, Case, Problem

pytestmark = pytest.mark.skipif(
    not _registry.has_native("planted_conv2d", "cpu"), reason="plantops._C is not built: PLANTOPS_BUILD=cpu"
)

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

# Widths around and across the vectors of all instruction sets (2 to 16 lanes), images side by side, several bands.
WIDTHS = [
    Case(fi=3, pi=4, fo=7, po=5, batch=5, size=(height, width), kernel=(3, 3), padding=1, start=1, max_pool=pool,
         activation="relu")
    for (height, width), pool in zip(
        [(8, 8), (4, 4), (5, 5), (2, 2), (16, 16), (7, 19), (6, 33), (9, 3), (3, 31), (12, 12), (40, 24)],
        itertools.cycle([1, 2, 3]),
        strict=False,
    )
]  # fmt: skip
KERNELS = [
    Case(kernel=kernel, padding=padding, dilation=dilation, size=(11, 13), layout=layout, batch=3, addend=addend)
    for (kernel, padding, dilation), layout, addend in zip(
        [
            ((1, 1), 0, 1),
            ((1, 1), 2, 1),
            ((2, 2), 1, 1),
            ((3, 3), 3, 1),  # more padding than the kernel reaches: the input gradient is a crop
            ((3, 3), (0, 4), (2, 1)),
            ((5, 5), 2, 2),
            ((7, 7), 3, 1),
            ((7, 1), (3, 0), 1),
            ((1, 5), (0, 2), (1, 3)),
            ((2, 6), (1, 0), 1),
        ],
        itertools.cycle(LAYOUTS),
        itertools.cycle([False, True, False]),
        strict=False,
    )
]
CHANNELS = [
    Case(fi=fi, pi=pi, fo=fo, po=po, start=fi // 2, size=(6, 10), batch=3, bias_out=bool(po))
    for fi, pi, fo, po in [
        (0, 4, 8, 0),
        (0, 3, 5, 2),
        (3, 0, 0, 5),
        (1, 1, 1, 1),
        (20, 4, 12, 4),
        (61, 8, 13, 8),
        (8, 0, 23, 0),
    ]
]
# One block alone with pooling, as a sweep calls it: rows taken whole, by one image or two side by side, an odd image
# over, last vectors that overlap the one before.
BLOCKS = [
    Case(fi=fi, pi=pi, fo=fo, po=po, start=None, size=size, batch=batch, max_pool=pool, activation=activation,
         addend=addend)
    for (fi, pi, fo, po), size, batch, pool, activation, addend in [
        ((3, 0, 0, 4), (32, 32), 2, 2, "relu", False),
        ((6, 0, 0, 4), (16, 16), 3, 2, "relu", False),
        ((0, 4, 7, 0), (16, 16), 2, 2, "relu", True),
        ((0, 4, 7, 0), (8, 8), 5, 2, "relu", True),
        ((0, 4, 7, 0), (8, 8), 4, 1, "relu", True),
        ((0, 1, 9, 0), (7, 10), 4, 2, "none", True),
        ((9, 0, 9, 0), (8, 8), 4, 2, "relu", False),
        ((2, 1, 3, 2), (10, 20), 2, 2, "relu", True),
        ((2, 1, 3, 2), (9, 12), 4, 2, "none", True),
        ((2, 1, 3, 2), (5, 14), 4, 2, "relu", True),
    ]
]  # fmt: skip
CASES = WIDTHS + KERNELS + CHANNELS + BLOCKS


def _compare(case: Case, dtype: torch.dtype, input_grad: str = "full") -> None:
    """Output and gradients of native against torch in float64, bounded by torch's own error in `dtype`."""
    exact = Problem.of(case.__class__(**{**vars(case)}))
    exact = exact.to(dtype).to(torch.float64)  # the same rounded numbers
    ours, torchs = exact.to(dtype), exact.to(dtype)
    y, y_torch, y_exact = ours.planted("native", input_grad=input_grad), torchs.joined(), exact.joined()
    assert_as_good_as_torch(y.detach(), y_torch.detach(), y_exact.detach(), f"output of {case}")
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    grads, grads_torch = ours.gradients(y, upstream), torchs.gradients(y_torch, upstream)
    grads_exact = exact.gradients(y_exact, upstream.double())
    for name, grad in grads.items():
        wanted, theirs = grads_exact[name], grads_torch[name]
        if wanted is None or grad is None:
            assert wanted is None or not wanted.any(), f"{name} of {case}: no gradient"
            continue
        if name == "input" and input_grad == "planted":
            frozen = torch.ones(wanted.shape[1], dtype=torch.bool)
            frozen[exact.start : exact.start + case.pi] = False
            assert not grad[:, frozen].any(), f"{name} of {case}: frozen channels got a gradient"
            grad, wanted, theirs = (t[:, ~frozen] for t in (grad, wanted, theirs))
        assert_close_in_norm(grad, theirs, wanted, f"gradient to {name} of {case}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case: Case, dtype: torch.dtype, poisoned: None) -> None:
    _compare(case, dtype)


@pytest.mark.parametrize("case", [CHANNELS[4], KERNELS[2], WIDTHS[1]], ids=str)
def test_planted_input_gradient(case: Case) -> None:
    _compare(case, torch.float32, input_grad="planted")


def _random_case(seed: int) -> Case:
    r = random.Random(seed)
    kernel = (r.choice([1, 2, 3, 5]), r.choice([1, 2, 3, 7]))
    fi = r.choice([0, 1, 3, 9])
    return Case(
        fi=fi, pi=r.choice([1, 2, 4]), fo=r.choice([1, 4, 9]), po=r.choice([1, 2, 8]), start=r.randint(0, fi),
        kernel=kernel, padding=(r.randint(kernel[0] // 2, kernel[0]), r.randint(kernel[1] // 2, kernel[1])),
        dilation=r.choice([1, (1, 2), 2]), batch=r.choice([1, 2, 5]), size=(r.randint(9, 18), r.randint(13, 36)),
        addend=r.random() < 0.4, activation=r.choice(["none", "relu"]), max_pool=r.choice([1, 2, 3]),
        layout=r.choice(LAYOUTS),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(seed: int) -> None:
    _compare(_random_case(seed), torch.float32)


def _check_all() -> None:
    """Run by a subprocess whose PLANTOPS_CPU_ISA is set."""
    for case in CASES + [_random_case(seed) for seed in range(40, 48)]:
        for dtype in (torch.float32, torch.float64):
            _compare(case, dtype)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa: str) -> None:
    """A level the machine lacks is lowered to the best it has, and tested again."""
    code = "from python_tests.ops.test_planted_conv2d_native import _check_all as check; check(); print('all equal')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PLANTOPS_CPU_ISA": isa},
        cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "all equal" in result.stdout


def _all_results(threads: int) -> list[torch.Tensor]:
    torch.set_num_threads(threads)
    results = []
    for case in (
        Case(fi=9, pi=4, fo=7, po=4, batch=37, size=(8, 8), activation="relu"),
        Case(fi=3, pi=0, fo=8, po=4, start=3, batch=19, size=(20, 20), max_pool=2),
    ):
        problem = Problem.of(case).to(torch.float32)
        y = problem.planted("native")
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        results += [y.detach(), *(g for g in problem.gradients(y, upstream).values() if g is not None)]
    return results


def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        first = _all_results(2)
        for threads in (2, 1, 3):
            for a, b in zip(first, _all_results(threads), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_shared_maths(tmp_path: Path) -> None:
    """csrc/ops/planted_conv2d.h and the plan, as C++ sees them."""
    source = Path(__file__).parents[2] / "csrc" / "tests" / "test_planted_conv2d.cpp"
    program = tmp_path / "test_planted_conv2d"
    subprocess.run(["c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)], check=True)
    subprocess.run([str(program)], check=True)


def _identity(x: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    one = [1, 1]
    weight = torch.ones(1, 1, 1, 1)
    settings = {"activation": "none", "max_pool": 1, **options}
    return forward_op(
        x, weight, None, None, None, None, one, [0, 0], one, 1, 1, None, settings["activation"], settings["max_pool"],
        True, "native",
    )  # fmt: skip


@pytest.mark.parametrize("width", [2, 6, 34])
def test_ties_of_a_window_go_to_the_first(width: int) -> None:
    x = torch.zeros(1, 1, 2, width)
    x[..., 1, 1::2] = 3
    x[..., 0, 1::2] = 3
    _, indices = _identity(x, max_pool=2)
    assert (indices == 1).all()
    _, indices = _identity(-x.abs() - 1, activation="relu", max_pool=2)
    assert (indices == 0).all()


@pytest.mark.parametrize("size", [(4, 4), (6, 40), (9, 9)])
@pytest.mark.parametrize("pool", [2, 3])
def test_nan_propagates(size: tuple[int, int], pool: int) -> None:
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    x[:, :, 1, 1] = float("nan")
    plain, _ = _identity(x, activation="relu")
    assert torch.equal(plain, x.relu().nan_to_num()) or torch.equal(plain.isnan(), x.isnan())
    pooled, indices = _identity(x, activation="relu", max_pool=pool)
    assert torch.equal(pooled.isnan(), torch.nn.functional.max_pool2d(x, pool).isnan())
    assert (indices[:, :, 0, 0] == pool + 1).all()


def test_relu_gradient_at_zero_is_zero() -> None:
    one = [1, 1]
    weight, output = torch.ones(1, 1, 1, 1), torch.tensor([0.0, -0.0, 1.0, float("nan")]).view(1, 1, 1, 4)
    grads = backward_op(
        torch.ones(1, 1, 1, 4), None, weight, None, None, output, None, [1, 4], [1, 4], one, [0, 0], one, 1, 1, 0,
        "relu", 1, "full", [True, False, False, False, False], "native",
    )  # fmt: skip
    assert grads[0].flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"stride": 2}, "stride 1"), ({"groups": 2, "fi": 4, "fo": 4, "pi": 2, "po": 2, "start": None}, "groups 1")],
)
def test_what_native_does_not_compute_is_said(change: dict, reason: str) -> None:
    problem = Problem.of(Case(**change)).to(torch.float32)
    with pytest.raises(NotImplementedError, match=reason):
        problem.planted("native")


def test_half_precision_is_refused_by_name() -> None:
    problem = Problem.of(Case()).to(torch.bfloat16)
    with pytest.raises(NotImplementedError, match="float32 and float64"):
        problem.planted("native")


def test_double_gradcheck() -> None:
    problem = Problem.of(Case(fi=2, pi=1, fo=2, po=1, batch=1, size=(5, 4), addend=True, activation="relu", max_pool=2))
    names = list(problem.trained)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        problem.trained = dict(zip(names, tensors, strict=True))
        return problem.planted("native")

    assert torch.autograd.gradcheck(run, tuple(problem.trained.values()))
