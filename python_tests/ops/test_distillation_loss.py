"""distillation_loss against float64: values, gradients, semantics at the edges, and how it behaves in torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_as_good_as_torch
from loss_cases import DTYPES, IMPLS, compute_dtype, layouts, logits, one_thread, saved_bytes, shapes  # noqa: F401
from torch import Tensor

from plantops.functional import distillation_loss, kl_div_logits

REDUCTIONS = ("none", "sum", "mean")
INF, NAN = float("inf"), float("nan")
CONFIGS = (  # alpha, temperature, label smoothing
    (0.9, 4.0, 0.0),
    (0.5, 1.0, 0.1),
    (0.3, 0.7, 0.1),
    (0.0, 3.0, 0.2),
    (1.0, 3.0, 0.2),
    (0.5, 2.0, 0.3),
)
pytestmark = pytest.mark.usefixtures("device", "one_thread")
each_impl = pytest.mark.parametrize("impl", IMPLS)
STEM = "distillation_loss"


def targets(shape: tuple[int, ...], seed: int) -> Tensor:
    target = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(seed), device="cpu")
    flat = target.view(-1)  # the first and the last class in any case
    flat[0], flat[-1] = 0, shape[-1] - 1
    return target.to(torch.get_default_device())


def torch_formula(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float, temperature: float, smoothing: float, reduction: str
) -> Tensor:
    p_t = F.softmax(teacher / temperature, -1)
    divergence = F.kl_div(F.log_softmax(student / temperature, -1), p_t, reduction="none").sum(-1)
    rows = student.reshape(-1, student.shape[-1])
    cross_entropy = F.cross_entropy(rows, target.reshape(-1), reduction="none", label_smoothing=smoothing)
    loss = alpha * temperature**2 * divergence + (1 - alpha) * cross_entropy.view(target.shape)
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]


def ours(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float, temperature: float, smoothing: float,
    reduction: str, impl: str,
) -> Tensor:  # fmt: skip
    return distillation_loss(
        student, teacher, target, alpha=alpha, temperature=temperature, label_smoothing=smoothing,
        reduction=reduction, impl=impl,
    )  # fmt: skip


def loss_and_grad(loss_function, student: Tensor, *args) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    loss = loss_function(student, *args)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).to(loss.dtype).view(loss.shape)
    (grad,) = torch.autograd.grad(loss, student, upstream)
    return loss.detach(), grad


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(impl: str, dtype: torch.dtype, config: tuple[float, float, float], reduction: str):
    for shape in shapes(impl):
        student, teacher, target = logits(shape, dtype, 1), logits(shape, dtype, 2), targets(shape, 3)
        exact = loss_and_grad(torch_formula, student.double(), teacher.double(), target, *config, reduction)
        wide = compute_dtype(dtype)  # torch's loss in the dtype that ours has, its gradient in the student's
        theirs, _ = loss_and_grad(torch_formula, student.to(wide), teacher.to(wide), target, *config, reduction)
        _, theirs_grad = loss_and_grad(torch_formula, student, teacher, target, *config, reduction)
        loss, grad = loss_and_grad(ours, student, teacher, target, *config, reduction, impl)
        assert_as_good_as_torch(loss, theirs, exact[0], f"loss of {shape}")
        assert_as_good_as_torch(grad, theirs_grad, exact[1], f"gradient of {shape}")


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("config", CONFIGS[:3], ids=str)
def test_gradcheck(impl: str, config: tuple[float, float, float], reduction: str):
    student, teacher = logits((3, 5), torch.float64, 4).requires_grad_(), logits((3, 5), torch.float64, 5)
    target = targets((3, 5), 6)
    assert torch.autograd.gradcheck(lambda s: ours(s, teacher, target, *config, reduction, impl), student)


@each_impl
def test_it_is_the_sum_of_its_two_terms(impl: str):
    """alpha = 1, T = 1 is kl_div_logits by rows, alpha = 0 is torch's cross entropy: no hidden factor."""
    student, teacher, target = logits((6, 9), torch.float64, 7), logits((6, 9), torch.float64, 8), targets((6, 9), 9)
    divergence = kl_div_logits(student, teacher, impl=impl)
    cross_entropy = F.cross_entropy(student, target, label_smoothing=0.1)
    torch.testing.assert_close(ours(student, teacher, target, 1.0, 1.0, 0.1, "mean", impl), divergence)
    torch.testing.assert_close(ours(student, teacher, target, 0.0, 5.0, 0.1, "mean", impl), cross_entropy)


@each_impl
@pytest.mark.parametrize("teacher_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_student_and_teacher_are_independent(impl: str, dtype: torch.dtype, teacher_dtype: torch.dtype):
    student, teacher, target = logits((4, 21), dtype, 10), logits((4, 21), teacher_dtype, 11), targets((4, 21), 12)
    config = (0.6, 2.0, 0.1, "mean")
    exact = loss_and_grad(torch_formula, student.double(), teacher.double(), target, *config)
    loss, grad = loss_and_grad(ours, student, teacher, target, *config, impl)
    assert loss.dtype == compute_dtype(dtype)
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, exact[0].to(loss.dtype), rtol=1e-5, atol=1e-6)
    rounding = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    torch.testing.assert_close(grad.double(), exact[1], rtol=rounding, atol=1e-6)


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_layouts_give_the_same_bits(impl: str, dtype: torch.dtype, reduction: str):
    student, teacher, target = logits((6, 37), dtype, 13), logits((6, 37), dtype, 14), targets((6, 37), 15)
    config = (0.6, 2.0, 0.1, reduction, impl)
    expected = loss_and_grad(ours, student, teacher, target, *config)
    every_other_target = torch.stack([target, target + 100], 1)[:, 0]
    for name, other_student in layouts(student).items():
        for other_teacher in layouts(teacher).values():
            results = loss_and_grad(ours, other_student, other_teacher, every_other_target, *config)
            for result, wanted in zip(results, expected, strict=True):
                # ATen sums in an order that follows the strides; native must not notice them on a CPU.
                exact = impl == "native" and wanted.device.type == "cpu"
                tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-2, "atol": 1e-5}
                torch.testing.assert_close(result, wanted, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@each_impl
def test_upstream_gradient_of_any_stride(impl: str):
    student, teacher, target = (
        logits((5, 12), torch.float32, 16),
        logits((5, 12), torch.float32, 17),
        targets((5, 12), 18),
    )
    student.requires_grad_()
    loss = ours(student, teacher, target, 0.6, 2.0, 0.1, "none", impl)
    (expanded,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
    (plain,) = torch.autograd.grad(loss, student, torch.ones(5), retain_graph=True)
    assert torch.equal(expanded, plain)
    weights = torch.arange(10.0)
    (strided,) = torch.autograd.grad(loss, student, weights[::2], retain_graph=True)
    (copied,) = torch.autograd.grad(loss, student, weights[::2].clone())
    assert torch.equal(strided, copied)


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batch(impl: str, reduction: str):
    student, target = torch.empty(0, 5, requires_grad=True), torch.empty(0, dtype=torch.int64)
    loss = ours(student, torch.empty(0, 5), target, 0.5, 2.0, 0.0, reduction, impl)
    expected = torch_formula(torch.empty(0, 5), torch.empty(0, 5), target, 0.5, 2.0, 0.0, reduction)
    torch.testing.assert_close(loss.detach(), expected, equal_nan=True)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert grad.shape == (0, 5)


@each_impl
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_class_at_minus_infinity_in_both_adds_nothing(impl: str, temperature: float):
    student, teacher = logits((3, 8), torch.float64, 19), logits((3, 8), torch.float64, 20)
    target = targets((3, 7), 21)
    without = loss_and_grad(ours, student[:, :-1], teacher[:, :-1], target, 0.5, temperature, 0.0, "sum", impl)
    student[:, -1] = teacher[:, -1] = -INF
    loss, grad = loss_and_grad(ours, student, teacher, target, 0.5, temperature, 0.0, "sum", impl)
    torch.testing.assert_close(loss, without[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(grad[:, :-1], without[1], rtol=1e-12, atol=1e-15)
    assert (grad[:, -1] == 0).all()


@each_impl
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_and_nan_as_in_torch(impl: str, dtype: torch.dtype):
    target = torch.tensor([1, 2, 3])
    for smoothing in (0.0, 0.1):
        for value, at in ((-INF, 2), (-INF, 3), (NAN, 2), (NAN, 3), (INF, 2), (INF, 3)):  # class 2 is the target
            student, teacher = logits((3, 20), dtype, 22), logits((3, 20), dtype, 23)
            student[1, at] = value
            loss = ours(student, teacher, target, 0.5, 2.0, smoothing, "none", impl)
            expected = torch_formula(student.double(), teacher.double(), target, 0.5, 2.0, smoothing, "none")
            torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@each_impl
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bits_repeat_whatever_the_number_of_threads(impl: str, temperature: float):
    rows = 4 if impl == "triton" else 64  # its interpreter is slow
    student, teacher = logits((rows, 1000), torch.float32, 24), logits((rows, 1000), torch.float32, 25)
    target = targets((rows, 1000), 26)
    results = []
    for count in (1, 2, 2, 5):
        torch.set_num_threads(count)  # one_thread restores it
        results.append(loss_and_grad(ours, student, teacher, target, 0.6, temperature, 0.1, "mean", impl))
    same = results[1:3] if impl != "native" else results
    for other in same[1:]:
        for first, second in zip(same[0], other, strict=True):
            assert torch.equal(first, second)


@each_impl
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_poisoned_memory_is_never_read(poisoned, impl: str, dtype: torch.dtype):
    student, teacher, target = logits((5, 19), dtype, 27), logits((5, 19), dtype, 28), targets((5, 19), 29)
    for reduction in REDUCTIONS:
        for temperature in (1.0, 2.0):
            for result in loss_and_grad(ours, student, teacher, target, 0.5, temperature, 0.1, reduction, impl):
                assert result.isfinite().all()


@each_impl
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scaled_gradients_of_half_logits(impl: str, dtype: torch.dtype):
    student, teacher, target = (
        logits((64, 500), dtype, 30, 0.5),
        logits((64, 500), dtype, 31, 0.5),
        targets((64, 500), 32),
    )
    config = (0.9, 2.0, 0.1, "mean")
    _, grad = loss_and_grad(lambda *args: ours(*args) * 65536, student, teacher, target, *config, impl)
    exact = student.double().requires_grad_()
    (torch_formula(exact, teacher.double(), target, *config) * 65536 * 0.5).backward()  # 0.5: the upstream above
    error = (grad.double() - exact.grad).norm() / exact.grad.norm()
    assert grad.dtype == dtype
    assert error < 2.0 ** (-8 if dtype == torch.bfloat16 else -11)


@each_impl
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_retain_graph_and_what_is_saved(impl: str, temperature: float):
    student, teacher, target = (
        logits((8, 30), torch.float32, 33),
        logits((8, 30), torch.float32, 34),
        targets((8, 30), 35),
    )
    student.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        loss = ours(student, teacher, target, 0.5, temperature, 0.0, "mean", impl)
    assert saved_bytes(saved, (student, teacher, target)) <= 3 * 8 * 4  # three log-sum-exps a row
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(loss, student)
    assert torch.equal(first, second)


@each_impl
def test_double_backward_names_the_op(impl: str):
    student = logits((2, 3), torch.float64, 36).requires_grad_()
    loss = ours(student, logits((2, 3), torch.float64, 37), torch.tensor([0, 2]), 0.5, 1.0, 0.0, "mean", impl)
    (grad,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="distillation_loss: double backward"):
        grad.sum().backward()


@pytest.mark.cpu_only  # on a GPU: test_on_gpu.py
@each_impl
def test_compiles_in_one_graph(impl: str):
    torch.compiler.reset()
    target = torch.tensor([0, 8, 3, 3])

    def step(student: Tensor, teacher: Tensor) -> Tensor:
        return ours(student * 2, teacher, target, 0.5, 2.0, 0.1, "mean", impl) * 3

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        student = logits((4, 9), torch.float32, 38).requires_grad_()
        loss = function(student, logits((4, 9), torch.bfloat16, 39))
        loss.backward()
        results.append((loss.detach(), student.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.cpu_only  # on a GPU a device assert ends the process: test_on_gpu.py
@each_impl
@pytest.mark.parametrize("wrong", [-1, 3, -(2**62), 2**62])
def test_targets_out_of_range_are_refused(impl: str, wrong: int):
    x, target = torch.zeros(4, 3), torch.tensor([0, 2, wrong, 1])
    with pytest.raises(ValueError, match=rf"target: .*\[0, 3\).*{wrong}"):
        ours(x, x, target, 0.5, 1.0, 0.0, "mean", impl)


GOOD = {
    "student": torch.zeros(2, 3),
    "teacher": torch.zeros(2, 3),
    "target": torch.tensor([0, 1]),
    "alpha": 0.5,
    "temperature": 2.0,
}


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"student": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "student: .*torch.int32"),
        ({"teacher": torch.zeros(2, 4)}, ValueError, r"teacher: .*\(2, 3\).*\(2, 4\)"),
        ({"target": torch.tensor([0.0, 1.0])}, TypeError, "target: .*integers.*float32"),
        ({"target": torch.tensor([False, True])}, TypeError, "target: .*integers.*bool"),
        ({"target": torch.tensor([0, 1, 2])}, ValueError, r"target: .*\(2,\).*\(3,\)"),
        ({"target": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "target: .*cpu.*meta"),
        ({"alpha": 1.5}, ValueError, "alpha: .*1.5"),
        ({"alpha": NAN}, ValueError, "alpha: .*nan"),
        ({"temperature": 0.0}, ValueError, "temperature: .*0.0"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing: .*-0.1"),
        ({"reduction": "batchmean"}, ValueError, "reduction: .*mean.*'batchmean'"),
        ({"impl": "fast"}, ValueError, "impl: .*'fast'"),
        ({"teacher": torch.zeros(2, 3, requires_grad=True)}, ValueError, "teacher: .*detach"),
    ],
)
def test_errors_name_the_argument(change: dict, error: type, text: str):
    with pytest.raises(error, match=text):
        distillation_loss(**{**GOOD, **change})


@pytest.mark.cpu_only  # one of the targets is out of range
@pytest.mark.parametrize("impl", ["native"])
def test_the_kernel_checks_its_own_arguments(impl: str):
    """Called as torch.ops without the function's checks it must not read or write outside its tensors."""
    forward, backward = torch.ops.plantops.distillation_loss, torch.ops.plantops.distillation_loss_backward
    x, rows, target, one = torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, dtype=torch.int64), torch.ones(())
    config = (0.5, 2.0, 0.0)
    with pytest.raises(ValueError, match="target"):
        forward(x, x, target[:3], *config, "sum", impl)
    with pytest.raises(TypeError, match="target"):
        forward(x, x, target.int(), *config, "sum", impl)
    with pytest.raises(ValueError, match="target"):
        backward(one, x, x, target + 3, rows, rows, rows, *config, "sum", impl)
    with pytest.raises(ValueError, match="lse_student"):
        backward(one, x, x, target, rows, rows, rows[:1], *config, "sum", impl)
    with pytest.raises(ValueError, match="grad"):
        backward(one, x, x, target, rows, rows, rows, *config, "none", impl)
    with pytest.raises(ValueError, match="reduction"):
        forward(x, x, target, *config, "batchmean", impl)
