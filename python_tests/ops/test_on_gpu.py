"""What only a GPU can show: graphs, streams, devices, TF32, offsets past 2^31, every width of a row on the card."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from bounds import assert_as_good_as_torch, assert_close_in_norm
from conv_cases import ALL, Case, Problem
from paths import by, without_shortcuts, without_the_module
from torch import Tensor

import plantops
import plantops.functional as PF
from plantops.bench.gpu import launches
from plantops.ops import _registry

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
F64 = torch.float64
IMPLS = ("aten", "native", "triton")
OURS = ("native", "triton")
OPS = ("kl_div_logits", "kl_div_logits_value_and_grad", "distillation_loss", "planted_conv2d", "planted_linear")
HARD = {"alpha": 0.3, "temperature": 2.0, "label_smoothing": 0.1}


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is float32, and cuDNN's kernels add up in a fixed order."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def each_op(function: Callable) -> Callable:
    return pytest.mark.parametrize("impl", IMPLS)(pytest.mark.parametrize("op", OPS)(function))


def require(stem: str, impl: str) -> None:
    if not _registry.live(stem, impl, "cuda"):
        pytest.skip(f"{impl}: {_registry.why_not(stem, impl, 'cuda')}")


@dataclass(frozen=True)
class Step:
    """A forward, and the backward where there is one, over tensors that stay where they are."""

    forward: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: tuple[Tensor, ...]
    upstream: Tensor | None = None

    def fill(self, seed: int) -> None:
        """Other values in the same place."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (*self.inputs, *(() if self.upstream is None else (self.upstream,))):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=F64))

    def run(self, forward: Callable | None = None) -> tuple[Tensor, ...]:
        """Results and gradients."""
        results = (forward or self.forward)(*self.inputs)
        if isinstance(results, tuple):
            return results
        trained = [tensor for tensor in self.inputs if tensor.requires_grad]
        return (results.detach(), *torch.autograd.grad(results, trained, self.upstream))


def step_of(op: str, impl: str, device: str = "cuda", seed: int = 0) -> Step:
    """A small step of an op; skips an implementation that is not there."""
    require(op, impl)

    def tensor(*shape: int, trained: bool = True) -> Tensor:
        return torch.empty(shape, device=device, requires_grad=trained)

    def image(*shape: int, trained: bool = True) -> Tensor:
        return torch.empty(shape, device=device, memory_format=torch.channels_last).requires_grad_(trained)

    if op == "planted_conv2d":
        frozen = torch.randn(12, 16, 3, 3, generator=torch.Generator().manual_seed(9)).to(device) / 12

        def convolve(x: Tensor, out: Tensor, into: Tensor, bias: Tensor, addend: Tensor) -> Tensor:
            return PF.planted_conv2d(
                x, frozen, out, into, None, bias, padding=1, addend=addend, activation="relu", max_pool=2, impl=impl
            )

        shapes = (image(8, 20, 16, 16), tensor(4, 20, 3, 3), tensor(12, 4, 3, 3), tensor(4), image(8, 16, 16, 16))
        made = Step(convolve, shapes, image(8, 16, 8, 8, trained=False))
    elif op == "planted_linear":
        rows = torch.randn(24, 32, generator=torch.Generator().manual_seed(9)).to(device) / 6

        def project(x: Tensor, out: Tensor, into: Tensor, bias: Tensor, addend: Tensor) -> Tensor:
            return PF.planted_linear(x, rows, out, into, None, bias, addend=addend, activation="relu", impl=impl)

        shapes = (tensor(64, 40), tensor(8, 40), tensor(24, 8), tensor(8), tensor(64, 32))
        made = Step(project, shapes, tensor(64, 32, trained=False))
    else:
        target = torch.arange(64, device=device) * 7 % 1000
        calls: dict[str, Callable] = {
            "kl_div_logits": lambda s, t: PF.kl_div_logits(s, t, 2.0, impl=impl),
            "kl_div_logits_value_and_grad": lambda s, t: PF.kl_div_logits_value_and_grad(s, t, 2.0, impl=impl),
            "distillation_loss": lambda s, t: PF.distillation_loss(s, t, target, **HARD, impl=impl),
        }
        made = Step(calls[op], (tensor(64, 1000), tensor(64, 1000, trained=False)))
    made.fill(seed)
    return made


def assert_same(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...], impl: str) -> None:
    """Our kernels repeat bit for bit; ATen's may take another order."""
    for index, (a, b) in enumerate(zip(ours, expected, strict=True)):
        if impl == "aten":
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b), f"result {index}"


def captured(step: Step) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """A graph of the step, and the tensors that its replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step.run()
    return graph, results


@each_op
def test_the_shortcut_and_the_way_through_python_are_one_op(op: str, impl: str):
    step = step_of(op, impl)
    ways = (without_shortcuts, without_the_module) if impl == "aten" else (without_shortcuts,)
    for way in ways:
        assert all(map(torch.equal, step.run(), by(way, step.run)))


@each_op
def test_a_captured_graph_replays_on_new_values(op: str, impl: str):
    step = step_of(op, impl)
    graph, results = captured(step)
    for seed in (1, 2):
        step.fill(seed)
        graph.replay()
        replayed = tuple(result.clone() for result in results)
        assert_same(replayed, step.run(), impl)


@each_op
def test_graphs_and_calls_on_several_streams_do_not_disturb_each_other(op: str, impl: str):
    steps = [step_of(op, impl, seed=seed) for seed in range(4)]
    expected = [step.run() for step in steps]
    graphs = [captured(step) for step in steps[:2]]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in steps]
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in steps]
    for _ in range(20):
        for index, (step, stream) in enumerate(zip(steps, streams, strict=True)):
            with torch.cuda.stream(stream):
                if index < len(graphs):
                    graph, results = graphs[index]
                    graph.replay()
                    found[index].append(tuple(result.clone() for result in results))
                else:
                    found[index].append(step.run())
    torch.cuda.synchronize()
    for index, runs in enumerate(found):
        for run in runs:
            assert_same(run, expected[index], impl)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@each_op
def test_another_device_than_the_current_one(op: str, impl: str):
    assert torch.cuda.current_device() == 0
    first, second = (step_of(op, impl, f"cuda:{index}").run() for index in range(2))
    assert {result.device.index for result in second} == {1}
    assert_same(tuple(result.to("cuda:0") for result in second), first, impl)


@each_op
def test_deterministic_algorithms(op: str, impl: str):
    step = step_of(op, impl)
    before = step.run()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = step.run(), step.run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_same(before, first, impl)


@each_op
def test_compiles_in_one_graph(op: str, impl: str):
    torch.compiler.reset()
    step = step_of(op, impl)
    compiled = torch.compile(step.forward, fullgraph=True)
    for a, b in zip(step.run(compiled), step.run(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_autocast(impl: str, dtype: torch.dtype):
    step = step_of("planted_conv2d", impl)
    exact = step.run()
    with torch.autocast("cuda", dtype=dtype):
        output = step.forward(*step.inputs)
    assert isinstance(output, Tensor)
    assert output.dtype == dtype
    assert step.upstream is not None
    gradients = torch.autograd.grad(output, step.inputs, step.upstream.to(dtype))
    for tensor, value in zip((output.detach(), *gradients), exact, strict=True):
        error = (tensor.float() - value).norm() / value.norm()
        assert float(error) < 0.3  # the maxima of about one pooling window in a hundred lie elsewhere
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_float32_on_every_geometry(case: Case, impl: str):
    """In float64, where the common tests compare exactly, Triton before 3.9 refuses."""
    require("planted_conv2d", impl)
    with torch.device("cuda"):
        low = Problem.of(case, torch.float32)
    exact = low.to(F64)
    try:
        y = low.planted(impl)
    except NotImplementedError as error:
        pytest.skip(str(error))
    torchs, truth = low.joined(), exact.joined()
    assert_as_good_as_torch(y, torchs, truth, "output")
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(y)
    mine, theirs = low.gradients(y, upstream), low.gradients(torchs, upstream)
    true = exact.gradients(truth, upstream.double())
    for name, grad in mine.items():
        assert grad is not None, name
        wanted, peer = true[name], theirs[name]
        if wanted is None or peer is None:
            assert not grad.any(), name
        else:
            assert_close_in_norm(grad, peer, wanted, name)


@pytest.mark.parametrize("impl", IMPLS)
def test_float32_products_follow_torchs_tf32_flag(impl: str, monkeypatch: pytest.MonkeyPatch):
    require("planted_conv2d", impl)
    with torch.device("cuda"):
        problem = Problem.of(Case(fi=60, pi=4, fo=60, po=4, size=(16, 16), batch=4, start=None), torch.float32)
    exact = problem.to(F64).joined().detach()
    errors = {}
    for flag in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", flag)
        errors[flag] = float((problem.planted(impl).detach().double() - exact).norm() / exact.norm())
    assert errors[False] < 1e-5
    if impl == "triton":
        assert 1e-5 < errors[True] < 2e-3
    else:
        assert errors[True] < (1e-5 if impl == "native" else 2e-3)


# Where lanes, warps, blocks, clusters and rows read again begin, and neighbours of them.
WIDTHS = (2, 3, 17, 64, 65, 255, 256, 257, 512, 1000, 1024, 1025, 2049, 4096, 8191, 16384, 32768, 50257, 131072, 262144)


def exact_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of all rows' divergences and its gradient, in float64."""
    log_s, log_t = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(), log_s.exp() - log_t.exp()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("impl", OURS)
def test_rows_of_every_width(impl: str, dtype: torch.dtype):
    """Aligned rows, and columns of a wider tensor, which begin anywhere between two boundaries of 16 bytes."""
    require("kl_div_logits", impl)
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    generator = torch.Generator("cuda").manual_seed(0)
    for classes in WIDTHS:
        rows = 67 if classes < 1000 else 5
        for offset in (0, 3):
            wide = torch.randn(2, rows, classes + offset, generator=generator, device="cuda").mul_(2).to(dtype)
            student, teacher = wide[0, :, offset:].requires_grad_(), wide[1, :, offset:]
            loss, gradient = exact_kl(student.detach(), teacher)
            ours = PF.kl_div_logits(student, teacher, reduction="sum", impl=impl)
            # Scaled, so that a float16 holds the shares of many classes.
            (grad,) = torch.autograd.grad(ours, student, ours.new_tensor(float(classes)))
            value, fused = PF.kl_div_logits_value_and_grad(student, teacher, reduction="sum", impl=impl)
            what = f"{classes} classes, offset {offset}"
            for result in (ours, value):
                torch.testing.assert_close(result.detach().double(), loss, rtol=1e-5, atol=0, msg=what)
            assert float((grad.double() / classes - gradient).norm() / gradient.norm()) < bound, what
            if dtype != torch.float16:
                assert float((fused.double() - gradient).norm() / gradient.norm()) < bound, what


@pytest.mark.parametrize("impl", OURS)
def test_distillation_of_every_width(impl: str):
    require("distillation_loss", impl)
    for classes in WIDTHS:
        with torch.device("cuda"):
            student, teacher = torch.randn(9, classes, requires_grad=True), torch.randn(9, classes)
            target = torch.arange(9) % classes
        results = []
        for dtype, name in ((torch.float32, impl), (F64, "reference")):
            loss = PF.distillation_loss(student.to(dtype), teacher.to(dtype), target, **HARD, impl=name)
            results.append((loss.detach(), *torch.autograd.grad(loss, student)))
        (loss, grad), (exact, gradient) = results
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
        assert float((grad - gradient).norm() / gradient.norm()) < 1e-5, classes


def require_memory(gibibytes: int) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gibibytes:
        pytest.skip(f"needs {gibibytes} GiB of free device memory, {free:.0f} are free")


ENDS = [0, 1, -2, -1]


@pytest.mark.parametrize("impl", OURS)
def test_logits_past_2_31_elements(impl: str):
    require("kl_div_logits", impl)
    require_memory(24)
    rows, classes = 16400, 131072
    student, teacher = (torch.randn(rows, classes, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    few, beside = student[ENDS].requires_grad_(), teacher[ENDS]
    (small,) = torch.autograd.grad(PF.kl_div_logits(few, beside, reduction="sum", impl=impl), few)
    fused = PF.kl_div_logits_value_and_grad(few, beside, reduction="sum", impl=impl)[1]
    assert small.any()
    grad = PF.kl_div_logits_value_and_grad(student, teacher, reduction="sum", impl=impl)[1]
    assert torch.equal(grad[ENDS], fused)
    del grad
    student.requires_grad_()
    (grad,) = torch.autograd.grad(PF.kl_div_logits(student, teacher, reduction="sum", impl=impl), student)
    assert torch.equal(grad[ENDS], small)
    del student, teacher, grad
    torch.cuda.empty_cache()


@pytest.mark.parametrize("impl", OURS)
def test_images_past_2_31_elements(impl: str):
    require("planted_conv2d", impl)
    require_memory(28)
    count, bf16 = 30900, torch.bfloat16
    generator = torch.Generator("cuda").manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=bf16)

    x = randn(count, 32, 32, 68).permute(0, 3, 1, 2)
    frozen, out, into = randn(64, 64, 3, 3) / 24, randn(4, 68, 3, 3) / 24, randn(64, 4, 3, 3) / 24
    upstream = torch.zeros_like(x)
    upstream[-2:] = randn(2, 68, 32, 32)

    def step(x: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
        trained = [tensor.detach().requires_grad_() for tensor in (x, out, into)]
        y = PF.planted_conv2d(trained[0], frozen, *trained[1:], padding=1, input_grad="planted", impl=impl)
        return y.detach(), *torch.autograd.grad(y, trained, upstream)

    small = step(x[ENDS].contiguous(memory_format=torch.channels_last), upstream[ENDS])
    large = step(x, upstream)
    assert torch.equal(large[0][ENDS], small[0])
    assert torch.equal(large[1][ENDS], small[1])
    assert small[1][-1].any()
    for ours, expected in zip(large[2:], small[2:], strict=True):  # the pixels are shared out among other blocks
        assert float((ours.float() - expected.float()).norm() / expected.float().norm()) < 1e-2
    del x, upstream, large
    torch.cuda.empty_cache()


def test_a_loss_is_one_launch_each_way():
    require("kl_div_logits", "native")
    for op in ("kl_div_logits", "distillation_loss"):
        step = step_of(op, "native")
        one = torch.ones((), device="cuda")
        student = step.inputs[0]

        def call(step: Step = step, one: Tensor = one, student: Tensor = student) -> None:
            loss = step.forward(*step.inputs)
            assert isinstance(loss, Tensor)
            torch.autograd.grad(loss, student, one)

        counted = launches(call)
        if not counted:
            pytest.skip("the profiler does not see this device")
        assert counted == 2, op


@pytest.mark.parametrize("impl", IMPLS)
def test_a_target_out_of_range_ends_the_process(impl: str):
    """A device assert: no device can be used behind it, so in a process of its own."""
    require("distillation_loss", impl)
    program = f"""
import torch
from plantops.functional import distillation_loss
x, target = torch.zeros(2, 3, device="cuda"), torch.tensor([0, 3], device="cuda")
distillation_loss(x, x, target, alpha=0.5, temperature=1.0, impl={impl!r})
torch.cuda.synchronize()
"""
    root = str(Path(plantops.__file__).parents[1])
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, env=variables)
    assert ran.returncode != 0
    if impl == "native":
        assert "target: expected class indices in [0, classes)" in ran.stdout + ran.stderr
