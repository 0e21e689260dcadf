"""planted_conv2d as a citizen of torch: what it saves, what it computes, autocast, compile, schemas, errors."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conv_cases import Case, Problem, arrange
from paths import without_shortcuts, without_the_module

from plantops.functional import planted_conv2d
from plantops.ops import _autocast, _registry
from python_tests.pairs import mostly_exhaustive

op, backward_op = torch.ops.plantops.planted_conv2d.default, torch.ops.plantops.planted_conv2d_backward.default
WIDE = Case(fi=14, pi=2, fo=12, po=4, start=3, activation="relu", max_pool=2, size=(8, 8), addend=True)
NAMES = ("input", "weight_out", "weight_in", "bias_out", "addend")


def saved_bytes(problem: Problem, needs: set[str]) -> int:
    """Storage that the graph keeps alive beside the parameters."""
    for name, tensor in problem.trained.items():
        tensor.requires_grad_(name in needs)
    known = {t.untyped_storage().data_ptr() for n, t in problem.trained.items() if n.startswith(("weight", "bias"))}
    known.add(problem.weight.untyped_storage().data_ptr())
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = problem.planted("aten")
    assert y.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize(
    ("needs", "channels_in", "channels_out"),
    [
        ({"weight_out", "bias_out"}, 16, 4),
        ({"bias_out"}, 0, 4),
        ({"weight_in"}, 2, 16),
        ({"input"}, 0, 16),
        ({"addend"}, 0, 16),
        ({"input", "weight_out", "weight_in", "bias_out"}, 16, 16),
    ],
)
@pytest.mark.parametrize("path", [lambda _: None, without_shortcuts])
def test_saved_bytes(needs: set[str], channels_in: int, channels_out: int, path, monkeypatch):
    path(monkeypatch)
    problem = Problem.of(WIDE, torch.float32)
    pixels, pooled = 2 * 8 * 8, 2 * 4 * 4
    # the input in float32; of the output's channels 4 bytes for the ReLU and 1 for the position of the maximum
    assert saved_bytes(problem, needs) == 4 * channels_in * pixels + (4 + 1) * channels_out * pooled


def test_more_than_a_quarter_is_saved_as_it_is():
    problem = Problem.of(Case(fi=5, pi=2, fo=4, po=3, size=(8, 8), activation="relu"), torch.float32)
    assert saved_bytes(problem, {"weight_in"}) == 4 * 2 * 64 * (7 + 7)
    assert saved_bytes(problem, {"bias_out"}) == 4 * 2 * 64 * 7


def convolutions(compute: Callable[[], object]) -> list[tuple]:
    """Each convolution_backward that `compute` makes: the gradient's channels, the weight's shape and the mask of what
    is computed."""
    with torch.profiler.profile(record_shapes=True) as profile:
        compute()
    calls = [event for event in profile.events() if event.name == "aten::convolution_backward"]
    return [
        (event.input_shapes[0][1], tuple(event.input_shapes[2][:2]), tuple(event.concrete_inputs[-1]))
        for event in calls
    ]


WEIGHT, INPUT = (False, True, False), (True, False, False)


@pytest.mark.parametrize(
    ("needs", "input_grad", "calls"),
    [
        ({"weight_out", "bias_out"}, "full", [(4, (4, 16), WEIGHT)]),
        ({"bias_out"}, "full", []),
        ({"addend"}, "full", []),
        ({"weight_in"}, "full", [(12, (12, 2), WEIGHT)]),
        ({"input"}, "full", [(16, (16, 16), INPUT)]),
        ({"input"}, "planted", [(16, (16, 2), INPUT)]),
        ({"input"}, "none", []),
        (set(NAMES), "planted", [(16, (16, 2), INPUT), (4, (4, 16), WEIGHT), (12, (12, 2), WEIGHT)]),
    ],
)
@pytest.mark.parametrize("path", [lambda _: None, without_shortcuts, without_the_module])
def test_only_what_is_asked_for(needs: set[str], input_grad: str, calls: list, path, monkeypatch):
    path(monkeypatch)
    problem = Problem.of(WIDE, torch.float32)
    for name, tensor in problem.trained.items():
        tensor.requires_grad_(name in needs)
    y = problem.planted("aten", input_grad=input_grad)
    assert convolutions(lambda: y.sum().backward() if y.requires_grad else None) == calls
    for name, tensor in problem.trained.items():
        assert (tensor.grad is not None) == (name in needs and (name != "input" or input_grad != "none"))


def op_arguments(case: Case, dtype: torch.dtype, impl: str):
    problem = Problem.of(case, dtype)
    t = {name: tensor.detach() for name, tensor in problem.trained.items()}
    stride, padding, dilation = (
        [v, v] if isinstance(v, int) else list(v) for v in (case.stride, case.padding, case.dilation)
    )
    geometry = (stride, padding, dilation, case.groups, problem.start)
    forward = (
        t["input"], problem.weight, t["weight_out"], t.get("weight_in"), problem.bias, t.get("bias_out"), *geometry,
        t.get("addend"), case.activation, case.max_pool, case.max_pool > 1, impl,
    )  # fmt: skip
    output, indices = op(*forward[:-1], "reference")
    conv_size = list(problem.joined(before="addend").shape[2:])

    def backward(input_grad: str, mask: list[bool], upstream: torch.Tensor, rows: slice = slice(None), x=t["input"]):
        return (
            upstream, x, problem.weight, t["weight_out"], t.get("weight_in"),
            output[:, rows] if case.activation == "relu" else None, indices[:, rows] if case.max_pool > 1 else None,
            list(case.size), conv_size, *geometry, case.pi, case.activation, case.max_pool, input_grad, mask, impl,
        )  # fmt: skip

    return forward, output, backward


CHECKED = [
    Case(layout="channels_last", max_pool=2, activation="relu"), Case(fi=6, fo=4, groups=2, pi=3, po=2, start=1),
    *(Case(layout=layout, max_pool=m, activation=a) for layout, m, a in (
        ("contiguous", 1, "none"), ("slice", 3, "none"), ("channels_last slice", 1, "relu"),
        ("channels_last slice", 2, "none"))),
    Case(fi=0, start=0, addend=True), Case(fo=0), Case(batch=0), Case(stride=2, dilation=2, padding=3),
    Case(fi=9, pi=1, fo=9, po=1, layout="channels_last"),
]  # fmt: skip


@pytest.mark.parametrize("impl", ["reference", "aten", "native"])
@pytest.mark.parametrize("case", mostly_exhaustive(CHECKED, CHECKED[:2]), ids=str)
def test_opcheck(case: Case, impl: str):
    if not _registry.live("planted_conv2d", impl, "cpu"):
        pytest.skip(_registry.why_not("planted_conv2d", impl, "cpu"))
    forward, output, backward = op_arguments(case, torch.float32, impl)
    try:
        op(*forward)
    except NotImplementedError as error:
        pytest.skip(str(error))
    torch.library.opcheck(op, forward)
    in_place = [True, True, case.groups == 1, True, True]
    torch.library.opcheck(backward_op, backward("full", in_place, torch.randn_like(output)))
    torch.library.opcheck(backward_op, backward("planted", in_place, torch.ones(()).expand_as(output)))
    new_rows = backward("none", [False, True, False, True, False], torch.randn_like(output), slice(case.fo, None))
    torch.library.opcheck(backward_op, new_rows)


@pytest.mark.parametrize("impl", ["reference", "aten", "native", "triton"])
def test_weight_gradients_have_the_strides_of_their_weights(impl: str):
    if not _registry.live("planted_conv2d", impl, "cpu"):
        pytest.skip(_registry.why_not("planted_conv2d", impl, "cpu"))
    _, output, backward = op_arguments(Case(), torch.float32, impl)
    arguments = list(backward("full", [False, True, True, False, False], torch.randn_like(output)))
    for i in (3, 4):
        arguments[i] = arguments[i].contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(backward_op, tuple(arguments))


def training_step(x, frozen, weight_out, weight_in, bias_out):
    y = planted_conv2d(x, frozen, weight_out, weight_in, None, bias_out, padding=1, activation="relu", max_pool=2)
    return F.log_softmax(y.flatten(1), 1).square().mean()


@pytest.mark.exhaustive
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_in_one_graph(backend: str, dynamic: bool, layout: str):
    torch._dynamo.reset()
    problem = Problem.of(Case(start=None, size=(8, 8)), torch.float32)
    t = problem.trained
    compiled = torch.compile(training_step, fullgraph=True, backend=backend, dynamic=dynamic)
    for batch in (2, 3):
        x = arrange(torch.randn(batch, 7, 8, 8), layout).requires_grad_()
        tensors = (x, problem.weight, t["weight_out"], t["weight_in"], t["bias_out"])
        trained = (x, *tensors[2:])
        eager, fast = training_step(*tensors), compiled(*tensors)
        torch.testing.assert_close(fast, eager)
        pairs = zip(torch.autograd.grad(fast, trained), torch.autograd.grad(eager, trained), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


def test_autocast_casts_as_conv2d_does():
    problem = Problem.of(Case(start=None, addend=True), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = problem.planted("auto"), problem.joined(before="addend")
    assert y.dtype == expected.dtype == torch.bfloat16
    exact = problem.to(torch.float64).joined().detach()
    assert float((y.detach().double() - exact).abs().max()) < 0.05
    y.float().square().sum().backward()
    assert {t.grad.dtype for t in problem.trained.values()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Problem.of(Case()).planted("auto").dtype == torch.float64  # as F.conv2d leaves float64 alone
        rounded = Problem.of(Case(activation="relu"), torch.float32)
        y = rounded.planted("reference")
        y.sum().backward()  # backward inside the context
    assert rounded.trained["weight_out"].grad.dtype == torch.float32


def test_low_precision_copy_of_a_frozen_weight():
    weight = torch.randn(4, 3, 3, 3)
    x = torch.randn(1, 3, 5, 5)

    def copy_of(weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            planted_conv2d(x, weight)
        return _autocast._frozen_copies[id(weight)].low

    first = copy_of(weight)
    assert first.dtype == torch.bfloat16
    assert copy_of(weight) is first
    weight.mul_(2)
    second = copy_of(weight)
    assert torch.equal(second, weight.bfloat16())
    weight.data = torch.ones_like(weight)
    assert torch.equal(copy_of(weight), weight.bfloat16())
    gone = weakref.ref(_autocast._frozen_copies[id(weight)].low)
    del weight, first, second
    gc.collect()
    assert gone() is None


def test_errors_name_argument_expectation_and_value():
    x, w = torch.randn(2, 5, 6, 6), torch.randn(4, 3, 3, 3)
    w_out, w_in = torch.randn(2, 5, 3, 3), torch.randn(4, 2, 3, 3)

    def fails(error, message: str, *args, **options) -> None:
        with pytest.raises(error, match=message):
            planted_conv2d(*args, **options)

    fails(ValueError, r"weight: .*\(4, 3, 3\)", x, w[..., 0])
    fails(ValueError, r"input: expected 3 \+ 2 channels .*\(2, 4, 6, 6\)", x[:, :4], w, w_out, w_in)
    fails(ValueError, r"input: expected \[N, .*\(5, 6, 6\)", x[0], w, w_out, w_in)
    fails(ValueError, r"weight_out: expected shape \(2, 5, 3, 3\), got \(2, 4, 3, 3\)", x, w, w_out[:, :4], w_in)
    fails(ValueError, r"weight_in: expected shape \(4, 2, 3, 3\), got \(3, 2, 3, 3\)", x, w, w_out, w_in[:3])
    fails(ValueError, r"bias: expected shape \(4,\), got \(3,\)", x, w, w_out, w_in, torch.ones(3))
    fails(ValueError, r"bias_out: expected shape \(2,\), got \(3,\)", x, w, w_out, w_in, None, torch.ones(3))
    fails(ValueError, r"in_start: .*\[0, 3\], got 4", x, w, w_out, w_in, in_start=4)
    fails(ValueError, r"addend: expected shape \(2, 6, 4, 4\)", x, w, w_out, w_in, addend=torch.ones(1))
    fails(ValueError, "activation: .*'gelu'", x, w, w_out, w_in, activation="gelu")
    fails(ValueError, "input_grad: .*'some'", x, w, w_out, w_in, input_grad="some")
    fails(ValueError, "impl: .*'fast'", x, w, w_out, w_in, impl="fast")
    fails(ValueError, "max_pool: .* 1 to 15, got 16", x, w, w_out, w_in, max_pool=16)
    fails(ValueError, "leave at least 5x5 .* leaves 4x4", x, w, w_out, w_in, max_pool=5)
    fails(ValueError, "leave at least 1x1", x, w, w_out, w_in, dilation=3)
    fails(ValueError, r"stride: .*>= 1, got \(0, 0\)", x, w, w_out, w_in, stride=0)
    fails(ValueError, r"padding: .*>= 0, got \(1, -1\)", x, w, w_out, w_in, padding=(1, -1))
    fails(ValueError, "padding: .*'same'", x, w, w_out, w_in, padding="same", stride=2)
    fails(ValueError, "stride: expected an integer or a pair", x, w, w_out, w_in, stride=(1, 1, 1))
    fails(ValueError, "weight_in: expected None with groups=2", x, torch.randn(4, 2, 3, 3), None, w_in, groups=2)
    fails(ValueError, "weight_out: expected whole new groups of 2", x, torch.randn(4, 2, 3, 3), w_out[:1, :2], groups=2)
    fails(ValueError, "weight: expected filters and inputs of 3 groups", x, torch.randn(4, 2, 3, 3), groups=3)
    fails(ValueError, "weight: expected a frozen", x[:, :3], w.clone().requires_grad_())
    fails(ValueError, "bias: expected a frozen", x[:, :3], w, bias=torch.ones(4, requires_grad=True))
    fails(TypeError, "weight: .*dtype torch.float32, got torch.float64", x[:, :3], w.double())
    fails(TypeError, "input: expected float64.*got torch.int64", x.long(), w)
    fails(ValueError, "weight: .*device cpu, got meta", x[:, :3], w.to("meta"))
    fails(NotImplementedError, "triton", x[:, :4], torch.randn(4, 2, 3, 3), groups=2, impl="triton")
    with torch.no_grad():
        planted_conv2d(x[:, :3], w.clone().requires_grad_())
