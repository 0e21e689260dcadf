"""kl_div_logits against float64: values, gradients, semantics at the edges, and how it behaves in torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_as_good_as_torch
from loss_cases import DTYPES, IMPLS, compute_dtype, layouts, logits, one_thread, saved_bytes, shapes  # noqa: F401
from torch import Tensor

from plantops.functional import kl_div_logits, kl_div_logits_value_and_grad

REDUCTIONS = ("none", "sum", "mean", "batchmean")
INF, NAN = float("inf"), float("nan")
each_impl = pytest.mark.parametrize("impl", IMPLS)
STEM = "kl_div_logits"


# torch advises against "mean"; here it is asked for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss"),
    pytest.mark.usefixtures("device", "one_thread"),
]


def torch_formula(student: Tensor, teacher: Tensor, temperature: float, reduction: str) -> Tensor:
    log_p_s = F.log_softmax(student / temperature, -1)
    return F.kl_div(log_p_s, F.softmax(teacher / temperature, -1), reduction=reduction)


def loss_and_grad(loss_function, student: Tensor, teacher: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    loss = loss_function(student, teacher, *args, **kwargs)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).to(loss.dtype).view(loss.shape)
    (grad,) = torch.autograd.grad(loss, student, upstream)
    return loss.detach(), grad


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [1.0, 3.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(impl: str, dtype: torch.dtype, temperature: float, reduction: str):
    for shape in shapes(impl):
        student, teacher = logits(shape, dtype, 1), logits(shape, dtype, 2)
        exact = loss_and_grad(torch_formula, student.double(), teacher.double(), temperature, reduction)
        # torch's loss in the dtype that ours has, its gradient in the student's.
        wide = compute_dtype(dtype)
        theirs_loss, _ = loss_and_grad(torch_formula, student.to(wide), teacher.to(wide), temperature, reduction)
        _, theirs_grad = loss_and_grad(torch_formula, student, teacher, temperature, reduction)
        loss, grad = loss_and_grad(kl_div_logits, student, teacher, temperature, reduction, impl=impl)
        assert_as_good_as_torch(loss, theirs_loss, exact[0], f"loss of {shape}")
        assert_as_good_as_torch(grad, theirs_grad, exact[1], f"gradient of {shape}")


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_grad_matches_float64(impl: str, dtype: torch.dtype, reduction: str):
    for shape in shapes(impl):
        for temperature in (1.0, 2.5):
            student, teacher = logits(shape, dtype, 3), logits(shape, dtype, 4)

            def formula(s: Tensor, t: Tensor, temperature: float = temperature) -> tuple[Tensor, Tensor]:
                s = s.detach().requires_grad_()
                loss = torch_formula(s, t, temperature, reduction)
                return loss.detach(), torch.autograd.grad(loss.sum(), s)[0]

            exact = formula(student.double(), teacher.double())
            wide = compute_dtype(dtype)
            loss, grad = kl_div_logits_value_and_grad(student, teacher, temperature, reduction, impl=impl)
            assert_as_good_as_torch(loss, formula(student.to(wide), teacher.to(wide))[0], exact[0], f"loss of {shape}")
            assert_as_good_as_torch(grad, formula(student, teacher)[1], exact[1], f"gradient of {shape}")
            assert not loss.requires_grad
            assert not grad.requires_grad


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(impl: str, reduction: str):
    student, teacher = logits((3, 5), torch.float64, 5).requires_grad_(), logits((3, 5), torch.float64, 6)
    for temperature in (1.0, 3.0):
        assert torch.autograd.gradcheck(
            lambda s, temperature=temperature: kl_div_logits(s, teacher, temperature, reduction, impl=impl), student
        )


@each_impl
def test_a_small_divergence_keeps_its_digits(impl: str):
    """Student and teacher nearly equal, at a large common offset: the terms cancel, the answer must not."""
    teacher = logits((4, 50), torch.float32, 7) + 100
    student = teacher + logits((4, 50), torch.float32, 8, spread=1e-2)
    exact = torch_formula(student.double(), teacher.double(), 1.0, "sum")
    loss = kl_div_logits(student, teacher, 1.0, "sum", impl=impl)
    theirs = torch_formula(student, teacher, 1.0, "sum")
    bound = abs(theirs.double() - exact) + (5e-3 if impl == "native" else 0.2) * exact
    assert abs(loss.double() - exact) <= bound


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "reference"])
def test_a_large_common_offset_costs_the_gradient_nothing(impl: str):
    """At logits near 1,000 a log-sum-exp in float32 is wrong by 3e-5; the gradient must not be."""
    student, teacher = logits((4, 50), torch.float32, 35) + 1000, logits((4, 50), torch.float32, 36) - 1000
    for reduction in ("sum", "none"):
        exact = loss_and_grad(torch_formula, student.double(), teacher.double(), 0.7, reduction)
        theirs = loss_and_grad(torch_formula, student, teacher, 0.7, reduction)
        for ours, wanted, peer in zip(
            loss_and_grad(kl_div_logits, student, teacher, 0.7, reduction, impl=impl), exact, theirs, strict=True
        ):
            assert_as_good_as_torch(ours, peer, wanted, reduction)


@each_impl
@pytest.mark.parametrize("teacher_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_student_and_teacher_are_independent(impl: str, dtype: torch.dtype, teacher_dtype: torch.dtype):
    student, teacher = logits((4, 21), dtype, 9), logits((4, 21), teacher_dtype, 10)
    for reduction in ("batchmean", "none"):
        exact = loss_and_grad(torch_formula, student.double(), teacher.double(), 2.0, reduction)
        loss, grad = loss_and_grad(kl_div_logits, student, teacher, 2.0, reduction, impl=impl)
        assert loss.dtype == compute_dtype(dtype)
        assert grad.dtype == dtype
        torch.testing.assert_close(loss, exact[0].to(loss.dtype), rtol=1e-5, atol=1e-6)
        rounding = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
        torch.testing.assert_close(grad.double(), exact[1], rtol=rounding, atol=1e-6)


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_layouts_give_the_same_bits(impl: str, dtype: torch.dtype, reduction: str):
    student, teacher = logits((6, 37), dtype, 11), logits((6, 37), dtype, 12)
    expected = loss_and_grad(kl_div_logits, student, teacher, 1.5, reduction, impl=impl)
    fused = kl_div_logits_value_and_grad(student, teacher, 1.5, reduction, impl=impl)
    for name, other_student in layouts(student).items():
        for other_teacher in layouts(teacher).values():
            loss, grad = loss_and_grad(kl_div_logits, other_student, other_teacher, 1.5, reduction, impl=impl)
            both = (loss, grad, *kl_div_logits_value_and_grad(other_student, other_teacher, 1.5, reduction, impl=impl))
            for ours, wanted in zip(both, (*expected, *fused), strict=True):
                # ATen sums in an order that follows the strides; native must not notice them on a CPU.
                exact = impl == "native" and wanted.device.type == "cpu"
                tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-2, "atol": 1e-5}
                torch.testing.assert_close(ours, wanted, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@each_impl
def test_leading_dimensions_without_one_stride(impl: str):
    student, teacher = logits((3, 4, 10), torch.float32, 13), logits((3, 4, 10), torch.float32, 14)
    flat = loss_and_grad(kl_div_logits, student.reshape(12, 10), teacher.reshape(12, 10), 1.0, "sum", impl=impl)
    for make in (
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.stack([x, x], 1)[:, 0],
        lambda x: torch.stack([x, x], 2)[:, :, 0],
        lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ):
        loss, grad = loss_and_grad(kl_div_logits, make(student), make(teacher), 1.0, "sum", impl=impl)
        torch.testing.assert_close(loss, flat[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(grad.reshape(12, 10), flat[1], rtol=1e-6, atol=1e-7)
    one_row = teacher[:1, :1].expand(3, 4, 10)
    torch.testing.assert_close(
        kl_div_logits(student, one_row, impl=impl), kl_div_logits(student, one_row.contiguous(), impl=impl)
    )


@each_impl
def test_expanded_upstream_gradient(impl: str):
    student, teacher = logits((5, 12), torch.float32, 15).requires_grad_(), logits((5, 12), torch.float32, 16)
    loss = kl_div_logits(student, teacher, 1.0, "none", impl=impl)
    (expanded,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
    (by_row,) = torch.autograd.grad(loss, student, torch.ones(5, 1).expand(5, 12), retain_graph=True)
    (plain,) = torch.autograd.grad(loss, student, torch.ones(5, 12))
    assert torch.equal(expanded, plain)
    assert torch.equal(by_row, plain)


@each_impl
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 4)])
def test_empty_batch(impl: str, reduction: str, shape: tuple[int, ...]):
    student = torch.empty(shape, requires_grad=True)
    loss = kl_div_logits(student, torch.empty(shape), 1.0, reduction, impl=impl)
    expected = torch_formula(torch.empty(shape), torch.empty(shape), 1.0, reduction)
    torch.testing.assert_close(loss.detach(), expected, equal_nan=True)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert grad.shape == shape
    value, grad = kl_div_logits_value_and_grad(student, torch.empty(shape), 1.0, reduction, impl=impl)
    torch.testing.assert_close(value, expected, equal_nan=True)
    assert grad.shape == shape


@each_impl
@pytest.mark.parametrize("classes", [4, 40])
def test_a_class_at_minus_infinity_in_both_adds_nothing(impl: str, classes: int):
    student, teacher = logits((3, classes), torch.float64, 17), logits((3, classes), torch.float64, 18)
    without = loss_and_grad(kl_div_logits, student[:, :-1], teacher[:, :-1], 2.0, "sum", impl=impl)
    student[:, -1] = teacher[:, -1] = -INF
    loss, grad = loss_and_grad(kl_div_logits, student, teacher, 2.0, "sum", impl=impl)
    torch.testing.assert_close(loss, without[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(grad[:, :-1], without[1], rtol=1e-12, atol=1e-15)
    assert (grad[:, -1] == 0).all()
    terms, grad = loss_and_grad(kl_div_logits, student, teacher, 2.0, "none", impl=impl)
    assert (terms[:, -1] == 0).all()
    assert (grad[:, -1] == 0).all()
    value, grad = kl_div_logits_value_and_grad(student, teacher, 2.0, "sum", impl=impl)
    torch.testing.assert_close(value, loss)
    assert (grad[:, -1] == 0).all()


@each_impl
@pytest.mark.parametrize("classes", [4, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_and_nan_as_in_torch(impl: str, dtype: torch.dtype, classes: int):
    """One special row among ordinary ones; both masked is the one case in which we differ, tested above."""
    rows = {
        "teacher class masked": (0.0, -INF),
        "student class masked": (-INF, 0.0),
        "student NaN": (NAN, 0.0),
        "teacher NaN": (0.0, NAN),
        "student +inf": (INF, 0.0),
        "teacher +inf": (0.0, INF),
    }
    for name, (in_student, in_teacher) in rows.items():
        student, teacher = logits((3, classes), dtype, 19), logits((3, classes), dtype, 20)
        student[1, 2], teacher[1, 2] = in_student, in_teacher
        loss = kl_div_logits(student, teacher, 1.0, "none", impl=impl)
        value, grad = kl_div_logits_value_and_grad(student, teacher, 1.0, "sum", impl=impl)
        expected = torch_formula(student.double(), teacher.double(), 1.0, "none")
        torch.testing.assert_close(loss.sum(-1).double(), expected.sum(-1), rtol=1e-5, atol=1e-6, equal_nan=True,
                                   msg=lambda text, name=name: f"{name}: {text}")  # fmt: skip
        torch.testing.assert_close(value.double(), expected.sum(), rtol=1e-5, atol=1e-6, equal_nan=True)
        assert grad[[0, 2]].isfinite().all()
        assert grad[1].isnan().any() == (math.isnan(in_student + in_teacher) or INF in (in_student, in_teacher)), name


@each_impl
def test_a_row_all_at_minus_infinity_is_nan(impl: str):
    masked, ordinary = torch.full((1, 6), -INF), logits((1, 6), torch.float32, 21)
    for student, teacher in ((masked, ordinary), (ordinary, masked), (masked, masked)):
        loss, grad = loss_and_grad(kl_div_logits, student, teacher, 1.0, "sum", impl=impl)
        assert loss.isnan()
        assert grad.isnan().all()
        assert torch_formula(student, teacher, 1.0, "sum").isnan()


@each_impl
def test_logits_far_apart_do_not_overflow(impl: str):
    student, teacher = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-3e4, 3e4, 0.0]])
    loss, grad = loss_and_grad(kl_div_logits, student, teacher, 1.0, "sum", impl=impl)
    torch.testing.assert_close(loss, torch.tensor(2e4))
    torch.testing.assert_close(grad, torch.tensor([[0.5, -0.5, 0.0]]) * 2 * 0.5)


@each_impl
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_bits_repeat_whatever_the_number_of_threads(impl: str, reduction: str):
    rows = 4 if impl == "triton" else 64  # its interpreter is slow
    student, teacher = logits((rows, 1000), torch.float32, 22), logits((rows, 1000), torch.float32, 23)

    def run() -> tuple[Tensor, ...]:
        fused = kl_div_logits_value_and_grad(student, teacher, 2.0, reduction, impl=impl)
        return *loss_and_grad(kl_div_logits, student, teacher, 2.0, reduction, impl=impl), *fused

    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    same = results[1:3] if impl != "native" else results
    for other in same[1:]:
        for first, second in zip(same[0], other, strict=True):
            assert torch.equal(first, second)


@each_impl
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_poisoned_memory_is_never_read(poisoned, impl: str, dtype: torch.dtype):
    student, teacher = logits((5, 19), dtype, 24), logits((5, 19), dtype, 25)
    for reduction in REDUCTIONS:
        loss, grad = loss_and_grad(kl_div_logits, student, teacher, 1.5, reduction, impl=impl)
        value, fused = kl_div_logits_value_and_grad(student, teacher, 1.5, reduction, impl=impl)
        for result in (loss, grad, value, fused):
            assert result.isfinite().all()


@each_impl
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scaled_gradients_of_half_logits(impl: str, dtype: torch.dtype):
    """loss * 65536, as a GradScaler does: the small gradients of a large batch survive in float16."""
    student, teacher = logits((64, 500), dtype, 26, 0.5).requires_grad_(), logits((64, 500), dtype, 27, 0.5)
    loss = kl_div_logits(student, teacher, impl=impl)
    assert loss.dtype == torch.float32
    (loss * 65536).backward()
    assert student.grad.dtype == dtype
    exact = student.detach().double().requires_grad_()
    (torch_formula(exact, teacher.double(), 1.0, "batchmean") * 65536).backward()
    error = (student.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 2.0 ** (-8 if dtype == torch.bfloat16 else -11)


@each_impl
def test_retain_graph_and_what_is_saved(impl: str):
    student, teacher = logits((8, 30), torch.float32, 28).requires_grad_(), logits((8, 30), torch.float32, 29)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        loss = kl_div_logits(student, teacher, impl=impl)
    assert saved_bytes(saved, (student, teacher)) == 2 * 8 * 4  # two log-sum-exps a row
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(loss, student)
    assert torch.equal(first, second)


@each_impl
def test_double_backward_names_the_op(impl: str):
    student = logits((2, 3), torch.float64, 30).requires_grad_()
    loss = kl_div_logits(student, logits((2, 3), torch.float64, 31), impl=impl)
    (grad,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="kl_div_logits: double backward"):
        grad.sum().backward()


@pytest.mark.cpu_only  # on a GPU: test_on_gpu.py
@each_impl
def test_compiles_in_one_graph(impl: str):
    torch.compiler.reset()

    def step(student: Tensor, teacher: Tensor) -> Tensor:
        return kl_div_logits(student * 2, teacher, 2.0, impl=impl) * 3

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        student = logits((4, 9), torch.float32, 32).requires_grad_()
        loss = function(student, logits((4, 9), torch.bfloat16, 33))
        loss.backward()
        results.append((loss.detach(), student.grad))
    torch.testing.assert_close(results[1], results[0])


@each_impl
def test_inference_keeps_no_graph(impl: str):
    student = logits((2, 3), torch.float32, 34).requires_grad_()
    with torch.no_grad():
        assert not kl_div_logits(student, student, impl=impl).requires_grad
    assert not kl_div_logits(student.detach(), student.detach(), impl=impl).requires_grad


GOOD = {"student": torch.zeros(2, 3), "teacher": torch.zeros(2, 3)}


@pytest.mark.cpu_only
@pytest.mark.parametrize("function", [kl_div_logits, kl_div_logits_value_and_grad])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"student": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "student: .*torch.int32"),
        ({"teacher": torch.zeros(2, 3, dtype=torch.bool)}, TypeError, "teacher: .*torch.bool"),
        ({"student": [[0.0]]}, TypeError, "student: .*list"),
        ({"teacher": torch.zeros(2, 4)}, ValueError, r"teacher: .*\(2, 3\).*\(2, 4\)"),
        ({"teacher": torch.zeros(2, 3, device="meta")}, ValueError, "teacher: .*cpu.*meta"),
        ({"student": torch.zeros(()), "teacher": torch.zeros(())}, ValueError, "student: .*scalar"),
        ({"student": torch.zeros(2, 1), "teacher": torch.zeros(2, 1)}, ValueError, "student: .*2 to 262144.*1"),
        ({"student": torch.zeros(1, 262145), "teacher": torch.zeros(1, 262145)}, ValueError, "student: .*262145"),
        ({"temperature": 0.0}, ValueError, "temperature: .*0.0"),
        ({"temperature": -1.0}, ValueError, "temperature: .*-1.0"),
        ({"temperature": NAN}, ValueError, "temperature: .*nan"),
        ({"temperature": INF}, ValueError, "temperature: .*inf"),
        ({"reduction": "max"}, ValueError, "reduction: .*batchmean.*'max'"),
        ({"impl": "fast"}, ValueError, "impl: .*native.*'fast'"),
    ],
)
def test_errors_name_the_argument(function, change: dict, error: type, text: str):
    with pytest.raises(error, match=text):
        function(**{**GOOD, **change})


def test_a_teacher_that_requires_grad_is_refused():
    teacher = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"teacher: .*detach"):
        kl_div_logits(torch.zeros(2, 3), teacher)
    with torch.no_grad():
        assert kl_div_logits(torch.zeros(2, 3), teacher) == 0


@pytest.mark.parametrize("impl", ["native"])
def test_the_kernel_checks_its_own_arguments(impl: str):
    """Called as torch.ops without the function's checks it must not read or write outside its tensors."""
    forward, backward = torch.ops.plantops.kl_div_logits, torch.ops.plantops.kl_div_logits_backward
    x, rows, one = torch.zeros(4, 3), torch.zeros(4), torch.ones(())
    with pytest.raises(ValueError, match="teacher"):
        forward(x, torch.zeros(2, 3), 1.0, "sum", impl)
    with pytest.raises(TypeError, match="student"):
        forward(x.int(), x, 1.0, "sum", impl)
    with pytest.raises(ValueError, match="reduction"):
        forward(x, x, 1.0, "max", impl)
    with pytest.raises(ValueError, match="lse_student"):
        backward(one, x, x, rows[:2], rows, 1.0, "sum", impl)
    with pytest.raises(TypeError, match="lse_teacher"):
        backward(one, x, x, rows, rows.double(), 1.0, "sum", impl)
    with pytest.raises(ValueError, match="grad"):
        backward(one, x, x, rows, rows, 1.0, "none", impl)
    with pytest.raises(ValueError, match="grad"):
        backward(x, x, x, rows, rows, 1.0, "sum", impl)
