"""The shortcut in C++ and the way through Python are one op: the same bits, the same memory, the same errors."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_cases import ALL, Case, Problem
from paths import SHORTCUTS, by, without_shortcuts
from test_planted_linear import SHAPES, planted
from test_planted_linear import problem as linear_problem
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from plantops import functional
from plantops._extension import STATUS
from plantops.functional import (
    distillation_loss,
    kl_div_logits,
    kl_div_logits_value_and_grad,
    planted_conv2d,
    planted_linear,
)
from plantops.ops import _eager, _registry, _tuned

if not STATUS.loaded:
    pytest.skip(f"no compiled module: {STATUS.reason}", allow_module_level=True)

NAMES = ("input", "weight_out", "weight_in", "bias_out", "addend")
S, T = torch.zeros(4, 10), torch.zeros(4, 10)
WIDE = Case(fi=14, pi=2, fo=12, po=4, start=3, activation="relu", max_pool=2, size=(8, 8), addend=True)
ORDINARY = [case for case in ALL if case.groups == 1 and not isinstance(case.padding, str)]


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Whether the shortcut computed, call by call."""
    record: list[bool] = []

    def watched(shortcut: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            result = shortcut(*args)
            record.append(result is not None)
            return result

        return call

    for name in SHORTCUTS:
        monkeypatch.setattr(_eager, name, watched(getattr(_eager, name)))
    return record


def kept(compute: Callable[[], Tensor]) -> tuple[Tensor, list[tuple[tuple[int, ...], int]]]:
    """The result, and shape and bytes of storage of all that its graph keeps."""
    saved: list[tuple[tuple[int, ...], int]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append((tuple(tensor.shape), tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return compute(), saved


def same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return torch.equal(ours, theirs) and ours.stride() == theirs.stride() and ours.dtype == theirs.dtype


def assert_same_way(
    call: Callable[[], Tensor], trained: dict[str, Tensor], taken: list[bool], every: bool = True
) -> None:
    """`every`: at least one tensor gets a gradient."""
    taken.clear()
    y, saved = kept(call)
    assert taken == [True]
    expected, expected_saved = kept(lambda: by(without_shortcuts, call))
    assert same(y, expected)
    assert saved == expected_saved
    assert y.requires_grad == expected.requires_grad
    if not y.requires_grad:
        return
    upstream = torch.randn(y.shape).to(y.dtype)
    tensors = [tensor for tensor in trained.values() if tensor.requires_grad]
    ours = torch.autograd.grad(y, tensors, upstream, allow_unused=True)
    theirs = torch.autograd.grad(expected, tensors, upstream, allow_unused=True)
    assert all(map(same, ours, theirs))
    assert any(gradient is not None for gradient in ours) or not every


def assert_same_error(call: Callable[[], Any], error: type[Exception] | tuple[type[Exception], ...]) -> None:
    def message() -> str:
        with pytest.raises(error) as raised:
            call()
        return str(raised.value)

    assert message() == by(without_shortcuts, message) != ""


@pytest.mark.parametrize("case", ORDINARY, ids=str)
def test_convolutions_of_every_shape(case: Case, taken):
    for impl, dtype in (("native", torch.float32), ("native", torch.float64), ("aten", torch.bfloat16)):
        if impl == "native" and case.stride != 1:
            continue
        problem = Problem.of(case, dtype)
        assert_same_way(lambda: problem.planted(impl), problem.trained, taken)  # noqa: B023


def test_triton_too(taken):
    if not _registry.live("planted_conv2d", "triton", "cpu"):
        pytest.skip(_registry.why_not("planted_conv2d", "triton", "cpu"))
    problem = Problem.of(WIDE, torch.float32)
    assert_same_way(lambda: problem.planted("triton"), problem.trained, taken)


@pytest.mark.parametrize("input_grad", ["full", "planted", "none"])
@pytest.mark.parametrize("needs", [n for r in range(6) for n in itertools.combinations(NAMES, r)], ids="+".join)
def test_every_set_of_gradients(needs: tuple[str, ...], input_grad: str, taken):
    for case in (WIDE, Case(fi=14, pi=2, fo=12, po=4, start=3, addend=True)):
        problem = Problem.of(case, torch.float32)
        for name, tensor in problem.trained.items():
            tensor.requires_grad_(name in needs)
        assert_same_way(
            lambda: problem.planted("native", input_grad=input_grad),  # noqa: B023
            problem.trained,
            taken,
            every=input_grad == "full",
        )
    shape = (14, 2, 12, 4, 3)
    for activation in ("none", "relu"):
        weight, bias, trained = linear_problem(shape)
        for name, tensor in trained.items():
            tensor.requires_grad_(name in needs)
        assert_same_way(
            lambda: planted(shape, weight, bias, trained, activation, "auto", input_grad=input_grad),  # noqa: B023
            trained,
            taken,
            every=input_grad == "full",
        )


@pytest.mark.parametrize("lead", [(), (0,), (3,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_layers_of_every_shape(shape, lead, taken):
    for activation, addend in itertools.product(("none", "relu"), (False, True)):
        weight, bias, trained = linear_problem(shape, lead, torch.float32, addend=addend)
        assert_same_way(lambda: planted(shape, weight, bias, trained, activation, "auto"), trained, taken)  # noqa: B023


def test_parameters_and_what_stands_for_a_pair(taken):
    problem = Problem.of(Case(start=None), torch.float32)
    t = {name: torch.nn.Parameter(tensor.detach()) for name, tensor in problem.trained.items()}
    args = (t["input"], problem.weight, t["weight_out"], t["weight_in"], problem.bias, t["bias_out"])
    ours = [planted_conv2d(*args, 1, one, impl="native") for one in (1, (1, 1))]
    assert taken == [True, True]
    listed = planted_conv2d(*args, [1, 1], [1, 1], [1, 1], impl="native")
    assert taken == [True, True, False]
    assert torch.equal(ours[0], ours[1])
    assert torch.equal(ours[0], listed)


@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("impl", ["native", "auto", "aten"])
def test_losses(impl: str, reduction: str, dtype: torch.dtype, teacher_dtype: torch.dtype, taken):
    student = torch.randn(3, 5, 7).transpose(0, 1).to(dtype).requires_grad_()
    teacher, target = torch.randn(5, 3, 7).to(teacher_dtype), torch.randint(7, (5, 3))
    calls: list[Callable[[], Tensor]] = [lambda: kl_div_logits(student, teacher, 2.5, reduction, impl=impl)]
    if reduction != "batchmean":
        calls.append(
            lambda: distillation_loss(
                student, teacher, target, alpha=0.3, temperature=2, label_smoothing=0.1, reduction=reduction, impl=impl
            )
        )
    for call in calls:
        taken.clear()
        (loss, saved), (expected, expected_saved) = kept(call), kept(lambda: by(without_shortcuts, call))  # noqa: B023
        assert taken == [True]
        assert same(loss, expected)
        assert saved == expected_saved
        upstream = torch.rand(loss.shape, dtype=loss.dtype)
        ours, theirs = (torch.autograd.grad(value, student, upstream)[0] for value in (loss, expected))
        assert same(ours, theirs)
        with torch.no_grad():
            assert same(call(), expected.detach())
    both = kl_div_logits_value_and_grad(student, teacher, 2.5, reduction, impl=impl)
    assert taken[-1]
    theirs = by(without_shortcuts, lambda: kl_div_logits_value_and_grad(student, teacher, 2.5, reduction, impl=impl))
    assert all(map(same, both, theirs))
    assert not any(result.requires_grad for result in both)


def test_losses_under_autocast(taken):
    student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
    with torch.autocast("cpu", torch.bfloat16):
        loss = kl_div_logits(student, teacher, impl="native")
        loss.backward()
    assert taken == [True]
    expected = kl_div_logits(student.detach().requires_grad_(), teacher, impl="native")
    assert same(loss, expected)


def simple(impl: str = "native", **options: Any) -> Tensor:
    problem = Problem.of(Case(), torch.float32)
    return problem.planted(impl, **options)


class Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def of_a_subclass() -> None:
    x = torch.randn(1, 3, 4, 4).as_subclass(Subclass)
    planted_conv2d(x, torch.randn(2, 3, 3, 3), impl="native")


def traced() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda s: kl_div_logits(s, torch.zeros(2, 3), impl="native"))(torch.zeros(2, 3))
    assert any(node.target is torch.ops.plantops.kl_div_logits.default for node in graph.graph.nodes)


@pytest.mark.parametrize(
    "call",
    [
        lambda: within(torch.inference_mode, simple),
        lambda: within(Mode, simple),
        lambda: within(torch._subclasses.FakeTensorMode, simple),
        lambda: simple("reference"),
        lambda: planted_conv2d(torch.randn(1, 4, 4, 4), torch.randn(2, 2, 1, 1), groups=2),
        lambda: planted_conv2d(torch.zeros(1, 3, 4, 4, device="meta"), torch.zeros(2, 3, 1, 1, device="meta")),
        of_a_subclass,
        traced,
    ],
)
def test_what_is_not_ordinary_goes_through_python(call: Callable[[], Any], taken):
    call()
    assert taken == [False]


def within(context: Callable[[], Any], call: Callable[[], Any]) -> Any:
    with context():
        return call()


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.complex(x, x).conj().imag,  # a negative bit
        lambda x: within(torch.inference_mode, lambda: x.clone()),
        lambda x: x.to_sparse(),
        lambda x: x.to("meta"),
    ],
)
def test_tensors_that_are_not_plain_go_through_python(make: Callable[[Tensor], Tensor], taken):
    x = make(torch.randn(1, 3, 4, 4))
    try:
        ours = planted_conv2d(x, torch.ones(2, 3, 3, 3), impl="aten")
    except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        with pytest.raises(type(error)):
            by(without_shortcuts, lambda: planted_conv2d(x, torch.ones(2, 3, 3, 3), impl="aten"))
    else:
        assert same(ours, by(without_shortcuts, lambda: planted_conv2d(x, torch.ones(2, 3, 3, 3), impl="aten")))
    assert taken == [False]


def test_a_dispatch_mode_sees_the_op(taken):
    with Watched():
        y = simple("aten")
    assert taken == [False]
    assert torch.equal(y, simple("aten"))


def test_default_devices_are_ordinary(taken):
    with torch.device("cpu"):
        simple()
    assert taken == [True]


def test_transforms_and_tangents_go_through_python(taken):
    """Their values are those of test_transforms.py."""
    torch.func.grad(lambda s: kl_div_logits(s, T))(S)
    torch.func.vmap(lambda s: kl_div_logits(s, T))(torch.randn(3, 4, 10))
    with torch.autograd.forward_ad.dual_level():
        planted_linear(torch.autograd.forward_ad.make_dual(torch.ones(4, 5), torch.ones(4, 5)), torch.ones(3, 5))
    assert taken == [False] * 3


def test_autocast_goes_through_python_once(taken):
    """Tensors are cast there; the call with the cast ones is ordinary."""
    with autocast():
        y = simple("auto")
    assert y.dtype == torch.bfloat16
    assert taken[0] is False


X, W = torch.zeros(2, 5, 6, 6), torch.zeros(4, 3, 3, 3)
OUT, IN, BIAS, BIAS_OUT = torch.zeros(3, 5, 3, 3), torch.zeros(4, 2, 3, 3), torch.zeros(4), torch.zeros(3)
GOOD: dict[str, Any] = {
    "input": X, "weight": W, "weight_out": OUT, "weight_in": IN, "bias": BIAS, "bias_out": BIAS_OUT, "impl": "native",
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"input": X[0]}, ValueError),
        ({"input": X[:, :4]}, ValueError),
        ({"input": X.double()}, TypeError),
        ({"input": X.long()}, TypeError),
        ({"input": 1.0}, TypeError),
        ({"weight": W[0]}, ValueError),
        ({"weight": W.clone().requires_grad_()}, ValueError),
        ({"bias": BIAS.clone().requires_grad_()}, ValueError),
        ({"bias": BIAS[:3]}, ValueError),
        ({"bias_out": BIAS_OUT[:2]}, ValueError),
        ({"weight_out": OUT[:, :4]}, ValueError),
        ({"weight_out": OUT[0, 0, 0]}, ValueError),
        ({"weight_in": IN[:3]}, ValueError),
        ({"weight_in": IN[:, :, :2]}, ValueError),
        ({"weight_in": IN[0, 0, 0]}, (ValueError, IndexError)),
        ({"stride": 0}, ValueError),
        ({"stride": 2**70}, (ValueError, RuntimeError, OverflowError)),
        ({"padding": -1}, ValueError),
        ({"padding": 2**62, "impl": "aten"}, (ValueError, RuntimeError, OverflowError)),
        ({"padding": "sane"}, ValueError),
        ({"dilation": (1, 0)}, ValueError),
        ({"dilation": (1, 1, 1)}, ValueError),
        ({"groups": 0}, ValueError),
        ({"in_start": 4}, ValueError),
        ({"in_start": -1}, ValueError),
        ({"addend": torch.zeros(2, 7, 6, 6)}, ValueError),
        ({"activation": "gelu"}, ValueError),
        ({"max_pool": 0}, ValueError),
        ({"max_pool": 5}, ValueError),
        ({"max_pool": 16}, ValueError),
        ({"input_grad": "some"}, ValueError),
        ({"impl": "fast"}, ValueError),
        ({"stride": 2}, NotImplementedError),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_errors_are_those_of_the_way_through_python(wrong: dict[str, Any], error: type[Exception]):
    assert_same_error(lambda: planted_conv2d(**{**GOOD, **wrong}), error)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kl_div_logits(S, T[:3]),
        lambda: kl_div_logits(S[:, :1], T[:, :1]),
        lambda: kl_div_logits(S.long(), T),
        lambda: kl_div_logits(S, T.clone().requires_grad_()),
        lambda: kl_div_logits(S, T, 0.0),
        lambda: kl_div_logits(S, T, float("nan")),
        lambda: kl_div_logits(S, T, reduction="median"),
        lambda: kl_div_logits(S, T, impl="fast"),
        lambda: kl_div_logits(S, None),
        lambda: kl_div_logits_value_and_grad(S, T, -1.0),
        lambda: kl_div_logits_value_and_grad(S, T, reduction="median"),
        lambda: distillation_loss(S, T, torch.zeros(4), alpha=0.5, temperature=1.0),
        lambda: distillation_loss(S, T, torch.zeros(3).long(), alpha=0.5, temperature=1.0),
        lambda: distillation_loss(S, T, torch.full((4,), 10), alpha=0.5, temperature=1.0),
        lambda: distillation_loss(S, T, torch.zeros(4).long(), alpha=1.5, temperature=1.0),
        lambda: distillation_loss(S, T, torch.zeros(4).long(), alpha=0.5, temperature=1.0, label_smoothing=-0.1),
        lambda: distillation_loss(S, T, torch.zeros(4).long(), alpha=0.5, temperature=1.0, reduction="batchmean"),
    ],
)
def test_errors_of_losses_are_those_of_the_way_through_python(call: Callable[[], Any]):
    assert_same_error(call, (ValueError, TypeError))


ROWS, COLUMNS = torch.zeros(4, 3), torch.zeros(2, 5)
LINEAR: dict[str, Any] = {
    "input": torch.zeros(6, 5), "weight": ROWS, "weight_out": COLUMNS, "weight_in": torch.zeros(4, 2),
    "bias": torch.zeros(4), "bias_out": torch.zeros(2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"input": torch.zeros(())}, ValueError),
        ({"input": torch.zeros(6, 4)}, ValueError),
        ({"input": torch.zeros(6, 5).double()}, TypeError),
        ({"weight": torch.zeros(4)}, ValueError),
        ({"weight": ROWS.clone().requires_grad_()}, ValueError),
        ({"bias": torch.zeros(4).requires_grad_()}, ValueError),
        ({"weight_in": torch.zeros(3, 2)}, ValueError),
        ({"weight_in": torch.zeros(())}, (ValueError, IndexError)),
        ({"weight_out": torch.zeros(2, 4)}, ValueError),
        ({"weight_out": torch.zeros(())}, (ValueError, IndexError)),
        ({"bias_out": torch.zeros(3)}, ValueError),
        ({"in_start": 4}, ValueError),
        ({"in_start": -1}, ValueError),
        ({"addend": torch.zeros(6, 5)}, ValueError),
        ({"activation": "gelu"}, ValueError),
        ({"input_grad": "some"}, ValueError),
        ({"impl": "fast"}, ValueError),
        ({"impl": "native"}, NotImplementedError),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_errors_of_linear_layers_are_those_of_the_way_through_python(wrong: dict[str, Any], error: type[Exception]):
    assert_same_error(lambda: planted_linear(**{**LINEAR, **wrong}), error)


def test_double_backward_raises(taken):
    problem = Problem.of(Case(), torch.float32)
    student = torch.randn(4, 10, requires_grad=True)
    linear = linear_problem((5, 2, 4, 3, 2))
    losses = (
        (problem.planted("native").square().sum(), list(problem.trained.values())),
        (planted((5, 2, 4, 3, 2), *linear, "relu", "aten").square().sum(), list(linear[2].values())),
        (kl_div_logits(student, T, impl="native"), [student]),
        (distillation_loss(student, T, torch.zeros(4).long(), alpha=0.5, temperature=2.0, impl="native"), [student]),
    )
    assert taken == [True] * 4
    for loss, trained in losses:
        gradients = torch.autograd.grad(loss, trained, create_graph=True)
        for gradient in gradients:
            with pytest.raises(RuntimeError, match="double backward is not supported"):
                torch.autograd.grad(gradient.sum(), trained, allow_unused=True, retain_graph=True)


def test_a_gradient_of_create_graph_may_be_changed_in_place():
    student = torch.randn(4, 10, requires_grad=True)
    plain = torch.autograd.grad(kl_div_logits(student, T, impl="native"), student)[0]
    (gradient,) = torch.autograd.grad(kl_div_logits(student, T, impl="native"), student, create_graph=True)
    assert torch.equal(gradient.mul_(0.5), plain * 0.5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant: bool):
    problem = Problem.of(Case(activation="relu", max_pool=2), torch.float32)
    trained = list(problem.trained.values())

    def gradients(y: Tensor) -> list[Tensor | None]:
        for tensor in trained:
            tensor.grad = None
        y.square().sum().backward()
        return [tensor.grad for tensor in trained]

    expected = gradients(problem.planted("auto"))
    x = problem.trained["input"]
    y = torch.utils.checkpoint.checkpoint(lambda _: problem.planted("auto"), x, use_reentrant=reentrant)
    assert all(map(torch.equal, gradients(y), expected))


@pytest.mark.parametrize("impl", ["auto", "aten"])
def test_backward_inside_autocast(impl: str):
    """The gradients are computed in the dtype of the forward, whatever is on when they are asked for."""
    problem = Problem.of(Case(addend=True, activation="relu"), torch.float32)
    trained = list(problem.trained.values())
    y, upstream = problem.planted(impl), torch.randn(2, 7, 7, 6)
    expected = torch.autograd.grad(y, trained, upstream, retain_graph=True)
    with autocast():
        ours = torch.autograd.grad(y, trained, upstream)
    assert all(map(same, ours, expected))


def test_an_error_in_a_hook_comes_through():
    def pack(tensor: Tensor) -> Tensor:
        raise KeyError("no room")

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), pytest.raises(KeyError, match="no room"):
        simple("native")
    assert simple("native").requires_grad


def test_a_graph_can_be_walked_twice_and_not_behind_its_back():
    problem = Problem.of(Case(activation="relu"), torch.float32)
    y, upstream = problem.planted("native"), torch.ones(())
    first = torch.autograd.grad(y.sum(), list(problem.trained.values()), upstream, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(y.sum(), list(problem.trained.values()), upstream)))
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    y = problem.planted("native")
    with torch.no_grad():
        problem.trained["input"].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_an_output_without_activation_may_be_changed_in_place():
    problem = Problem.of(Case(), torch.float32)
    expected = torch.autograd.grad(problem.planted("native").relu().sum(), list(problem.trained.values()))
    ours = torch.autograd.grad(problem.planted("native").relu_().sum(), list(problem.trained.values()))
    assert all(map(torch.equal, ours, expected))


def test_compiled_autograd_takes_it():
    problem = Problem.of(Case(activation="relu", max_pool=2), torch.float32)
    student, target = torch.randn(4, 10, requires_grad=True), torch.zeros(4).long()
    trained = [*problem.trained.values(), student]

    def gradients(backward: Callable[[Tensor], None]) -> list[Tensor | None]:
        for tensor in trained:
            tensor.grad = None
        loss = problem.planted("native").square().sum() + kl_div_logits(student, T, impl="native")
        backward(loss + distillation_loss(student, T, target, alpha=0.5, temperature=2.0, impl="native"))
        return [tensor.grad for tensor in trained]

    expected = gradients(torch.Tensor.backward)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        ours = gradients(torch.Tensor.backward)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_threads_share_it():
    """Several threads run forward and backward at once, each with the numbers of one alone."""
    problems = [Problem.of(WIDE, torch.float32, seed) for seed in range(4)]

    def gradients(problem: Problem) -> list[Tensor]:
        return list(torch.autograd.grad(problem.planted("auto").sum(), list(problem.trained.values())))

    expected = [gradients(problem) for problem in problems]
    found: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        for _ in range(20):
            found[index] = gradients(problems[index])

    _eager.forget_choices()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, one in enumerate(expected):
        assert all(map(torch.equal, found[index], one))


def test_auto_is_asked_once_a_shape(taken, monkeypatch):
    asked: list[str] = []

    def choice(stem: str, *args: Any) -> str:
        asked.append(stem)
        return real(stem, *args)

    real = _registry.choice
    monkeypatch.setattr(_registry, "choice", choice)
    _eager.forget_choices()
    problem = Problem.of(WIDE, torch.float32)
    y = problem.planted("auto")
    y.sum().backward()
    assert asked == ["planted_conv2d", "planted_conv2d_backward"]
    problem.planted("auto").sum().backward()
    assert len(asked) == 2
    Problem.of(WIDE, torch.float64).planted("auto")
    assert asked[2:] == ["planted_conv2d"]
    _tuned.forget()
    problem.planted("auto")
    assert asked[3:] == ["planted_conv2d"]
    monkeypatch.setattr(_registry, "choice", lambda *_: "aten")
    _tuned.forget()
    taken.clear()
    assert torch.equal(problem.planted("auto"), problem.planted("aten"))
    assert taken == [True, True]
    _tuned.forget()


def test_a_choice_that_cannot_compute_is_made_by_aten(taken, monkeypatch):
    """A measured row stands for its neighbours too; one that the kernel refuses goes to ATen, also next time."""
    monkeypatch.setattr(_registry, "choice", lambda *_: "native")
    _tuned.forget()
    problem = Problem.of(Case(stride=2), torch.float32)
    trained = list(problem.trained.values())
    for _ in range(2):
        y, expected = problem.planted("auto"), problem.planted("aten")
        assert torch.equal(y, expected)
        ours, theirs = torch.autograd.grad(y.sum(), trained), torch.autograd.grad(expected.sum(), trained)
        assert all(map(torch.equal, ours, theirs))
    assert taken == [True] * 4
    _tuned.forget()


def test_a_kernel_in_python_that_refuses_is_replaced_too(monkeypatch):
    def refuses(*_: Any) -> Any:
        raise NotImplementedError("not today")

    problem = Problem.of(Case(), torch.float32)
    expected = problem.planted("aten")
    for stem in ("planted_conv2d", "planted_conv2d_backward"):
        monkeypatch.setitem(_registry._ops[stem].implementations, "triton", refuses)
    monkeypatch.setattr(_registry, "choice", lambda *_: "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    _tuned.forget()
    y = problem.planted("auto")
    trained = list(problem.trained.values())
    ours, theirs = torch.autograd.grad(y.sum(), trained), torch.autograd.grad(expected.sum(), trained)
    assert torch.equal(y, expected)
    assert all(map(torch.equal, ours, theirs))
    _tuned.forget()


def test_backward_follows_the_layout_of_the_gradient_that_comes(taken):
    problem = Problem.of(Case(layout="channels_last", activation="relu"), torch.float32)
    y = problem.planted("auto")
    trained = list(problem.trained.values())
    contiguous = torch.randn(y.shape)
    ours = torch.autograd.grad(y, trained, contiguous, retain_graph=True)
    theirs = torch.autograd.grad(by(without_shortcuts, lambda: problem.planted("auto")), trained, contiguous)
    assert taken == [True]
    assert all(map(same, ours, theirs))


def test_the_public_functions_use_them(taken):
    """What is measured and promised is what people call."""
    simple("auto")
    planted_linear(**LINEAR)
    kl_div_logits(S, T)
    kl_div_logits_value_and_grad(S, T)
    distillation_loss(S, T, torch.zeros(4).long(), alpha=0.5, temperature=1.0)
    assert functional._eager is _eager
    assert taken == [True] * 5


def random_arguments(draw: random.Random) -> dict[str, Any]:
    """A call of planted_conv2d, often right and often wrong in one or two places."""
    inputs, planted_inputs, filters, planted_filters = (draw.choice((0, 1, 2, 3)) for _ in range(4))
    kernel, size = draw.choice((1, 2, 3)), draw.choice((1, 3, 6))

    def tensor(*shape: int) -> Tensor | None:
        if draw.random() < 0.1:
            return None
        shape = tuple(n + (draw.random() < 0.01) for n in shape)
        made = torch.randn(shape, dtype=torch.float64 if draw.random() < 0.01 else torch.float32)
        return made.requires_grad_(draw.random() < 0.5)

    def one_of(*good: Any, bad: Any) -> Any:
        return bad if draw.random() < 0.03 else draw.choice(good)

    rest = {
        "stride": one_of(1, 1, 2, (1, 1), (2, 1), bad=0), "padding": one_of(0, 1, (1, 0), bad=-1),
        "dilation": one_of(1, 1, 2, bad=0), "groups": one_of(1, bad=2),
        "in_start": one_of(None, 0, min(1, inputs), bad=inputs + 1), "activation": one_of("none", "relu", bad="tanh"),
        "max_pool": one_of(1, 1, 2, bad=0), "input_grad": one_of("full", "planted", "none", bad="some"),
        "impl": one_of("native", "aten", "auto", bad="fast"),
    }  # fmt: skip
    for name in draw.sample(list(rest), draw.choice((3, 6, 8))):
        del rest[name]  # the default
    frozen = tensor(filters, inputs, kernel, kernel)
    bias = tensor(filters)
    return {
        "input": tensor(2, inputs + planted_inputs, size, size + 1),
        "weight": frozen if frozen is None or draw.random() < 0.02 else frozen.detach(),
        "weight_out": tensor(planted_filters, inputs + planted_inputs, kernel, kernel),
        "weight_in": tensor(filters, planted_inputs, kernel, kernel),
        "bias": bias if bias is None or draw.random() < 0.02 else bias.detach(),
        "bias_out": tensor(planted_filters),
        **rest,
    }


def outcome(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What a call gives: its result and gradients, or its error."""
    try:
        y = planted_conv2d(**arguments)
    except Exception as error:
        return type(error).__name__, str(error)
    trained = [t for t in arguments.values() if isinstance(t, Tensor) and t.requires_grad]
    if not y.requires_grad:
        return (y,)
    return (y, *torch.autograd.grad(y, trained, torch.ones_like(y), allow_unused=True))


def test_any_call_is_the_same_both_ways(taken):
    draw = random.Random(0)
    torch.manual_seed(0)
    errors = 0
    for _ in range(1500):
        arguments = random_arguments(draw)
        ours, theirs = outcome(arguments), by(without_shortcuts, lambda: outcome(arguments))  # noqa: B023
        assert len(ours) == len(theirs), arguments
        if isinstance(ours[0], str):
            assert ours == theirs, arguments
            errors += 1
        else:
            assert all(map(same, ours, theirs)), arguments
    assert 300 < errors < 1200
    assert sum(taken) > 200
