"""planted_linear computes what torch computes with all blocks joined, and the same gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_as_good_as_torch

from plantops.functional import planted_linear
from python_tests.pairs import mostly_exhaustive

F64 = torch.float64
STEM = "planted_linear"
IMPLS = pytest.mark.parametrize("impl", ["reference", "aten", "triton", "auto"])
pytestmark = pytest.mark.usefixtures("device", "few_tiles")
# F_in, P_in, F_out, P_out, in_start
SHAPES = [(5, 2, 4, 3, 2), (5, 2, 4, 3, None), (5, 2, 4, 3, 0), (0, 2, 4, 3, 0), (5, 0, 4, 3, None), (5, 2, 0, 3, 1),
          (5, 2, 4, 0, 1), (0, 0, 2, 1, 0), (5, 2, 0, 0, 1), (13, 2, 12, 4, 3),
          (20, 17, 21, 18, 6)]  # fmt: skip


def problem(shape, lead=(3,), dtype=F64, addend=True, bias=True):
    """Frozen weight and bias, and what trains by name."""
    fi, pi, fo, po, _ = shape
    g = torch.Generator("cpu").manual_seed(0)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, dtype=F64, device="cpu").to(torch.get_default_device(), dtype)

    trained = {
        "input": randn(*lead, fi + pi), "weight_out": randn(po, fi + pi), "weight_in": randn(fo, pi),
        "bias_out": randn(po), "addend": randn(*lead, fo + po),
    }  # fmt: skip
    if not addend:
        del trained["addend"]
    for tensor in trained.values():
        tensor.requires_grad_()
    return randn(fo, fi), randn(fo) if bias else None, trained


def joined(shape, weight, bias, t, activation):
    fi, _, fo, _, start = shape
    start = fi if start is None else start
    rows = torch.cat([weight[:, :start], t["weight_in"], weight[:, start:]], 1)
    bias = weight.new_zeros(fo) if bias is None else bias
    y = F.linear(t["input"], torch.cat([rows, t["weight_out"]]), torch.cat([bias, t["bias_out"]]))
    y = y + t["addend"] if "addend" in t else y
    return y.relu() if activation == "relu" else y


def planted(shape, weight, bias, t, activation, impl, **options):
    return planted_linear(
        t["input"], weight, t["weight_out"], t["weight_in"], bias, t["bias_out"], in_start=shape[4],
        addend=t.get("addend"), activation=activation, impl=impl, **options,
    )  # fmt: skip


@IMPLS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("lead", [(), (0,), (3,), (2, 1, 3)], ids=str)
def test_equals_the_joined_linear(shape, activation: str, lead, impl: str, poisoned):
    for addend, bias in itertools.product((False, True), repeat=2):
        weight, b, t = problem(shape, lead, addend=addend, bias=bias)
        y, expected = planted(shape, weight, b, t, activation, impl), joined(shape, weight, b, t, activation)
        assert y.shape == expected.shape
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
        upstream = torch.randn_like(y)
        theirs = torch.autograd.grad(expected, list(t.values()), upstream)
        ours = torch.autograd.grad(y, list(t.values()), upstream)
        for name, a, b_ in zip(t, ours, theirs, strict=True):
            torch.testing.assert_close(a, b_, rtol=0, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@IMPLS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_input_grad(shape, impl: str):
    weight, bias, t = problem(shape)
    full = planted(shape, weight, bias, t, "relu", impl)
    upstream = torch.randn_like(full)
    (by_definition,) = torch.autograd.grad(full, t["input"], upstream)
    start = shape[0] if shape[4] is None else shape[4]
    by_definition[..., :start] = 0
    by_definition[..., start + shape[1] :] = 0
    (ours,) = torch.autograd.grad(
        planted(shape, weight, bias, t, "relu", impl, input_grad="planted"), t["input"], upstream
    )
    torch.testing.assert_close(ours, by_definition, rtol=0, atol=1e-13)
    none = planted(shape, weight, bias, t, "relu", impl, input_grad="none")
    if none.requires_grad:
        assert torch.autograd.grad(none, t["input"], upstream, allow_unused=True) == (None,)


@pytest.mark.cpu_only
@pytest.mark.parametrize("columns", [1, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_products_of_any_width(columns: int, dtype: torch.dtype):
    """Large enough that narrow ones are computed as their transposes."""
    shape = (96, columns, 80, columns, 32)
    weight, bias, t = problem(shape, (100,), dtype)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in t.items()}
    y = planted(shape, weight, bias, t, "none", "aten", input_grad="planted")
    truth, theirs = joined(shape, weight.double(), bias.double(), exact, "none"), joined(shape, weight, bias, t, "none")
    upstream = torch.randn_like(y)
    grads = [torch.autograd.grad(out, list(tensors.values()), upstream.to(out.dtype))
             for out, tensors in ((y, t), (theirs, t), (truth, exact))]  # fmt: skip
    for name, ours, torchs, true in zip(t, *grads, strict=True):
        assert ours.stride() == t[name].stride()
        if name == "input":  # of the planted features
            ours, torchs, true = (grad[:, 32 : 32 + columns] for grad in (ours, torchs, true))
        assert_as_good_as_torch(ours, torchs, true, name)


@IMPLS
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_gradcheck(activation: str, impl: str):
    shape = (2, 1, 2, 1, 1)  # a call for every number
    weight, bias, t = problem(shape, (2,))

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return planted(shape, weight, bias, dict(zip(t, tensors, strict=True)), activation, impl)

    assert torch.autograd.gradcheck(function, tuple(t.values()))


@IMPLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("addend", [False, True])
def test_error_is_bounded_by_torchs(dtype: torch.dtype, addend: bool, impl: str):
    shape = (60, 7, 40, 5, 20)
    weight, bias, t = problem(shape, (16,), dtype, addend=addend)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in t.items()}
    y, theirs = planted(shape, weight, bias, t, "none", impl), joined(shape, weight, bias, t, "none")
    truth = joined(shape, weight.double(), bias.double(), exact, "none")
    assert_as_good_as_torch(y, theirs, truth, "output")
    upstream = torch.randn_like(y)
    grads = [torch.autograd.grad(out, list(tensors.values()), upstream.to(out.dtype))
             for out, tensors in ((y, t), (theirs, t), (truth, exact))]  # fmt: skip
    for name, ours, torchs, true in zip(t, *grads, strict=True):
        assert_as_good_as_torch(ours, torchs, true, name)


@pytest.mark.parametrize(
    ("needs", "numbers"),
    [({"weight_out"}, 16 + 4), ({"weight_in"}, 3 + 16), ({"bias_out"}, 4), ({"input"}, 16), ({"addend"}, 16)],
)
def test_saved_bytes(needs: set[str], numbers: int):
    shape, rows = (13, 3, 12, 4, 3), 6
    weight, bias, t = problem(shape, (2, 3), torch.float32)
    for name, tensor in t.items():
        tensor.requires_grad_(name in needs)
    known = {x.untyped_storage().data_ptr() for x in (weight, bias, t["weight_out"], t["weight_in"])}
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = planted(shape, weight, bias, t, "relu", "auto")
    assert y.requires_grad
    assert sum(n for address, n in storages.items() if address not in known) == 4 * rows * numbers


@pytest.mark.parametrize("impl", ["reference", "aten", "triton"])
@pytest.mark.parametrize("shape", mostly_exhaustive(SHAPES, SHAPES[:2]), ids=str)
def test_opcheck(shape, impl: str):
    weight, bias, t = problem(shape, (2, 3), torch.float32)
    x, w_out, w_in, b_out, addend = (tensor.detach() for tensor in t.values())
    start = shape[0] if shape[4] is None else shape[4]
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    for activation, rows in (("none", slice(None)), ("relu", slice(shape[2], None))):
        forward = (strided, weight, w_out, w_in, bias, b_out, start, addend, activation, impl)
        torch.library.opcheck(torch.ops.plantops.planted_linear.default, forward)
        y = torch.ops.plantops.planted_linear(*forward)
        saved = y[..., rows] if activation == "relu" else None
        mask = [False, True, False, True, False] if activation == "relu" else [True] * 5
        upstream, transposed = torch.ones(()).expand_as(y), w_out.T.contiguous().T
        config = (start, activation, "full", mask, impl)
        backward = (upstream, strided, weight, transposed, w_in, saved, *config)
        torch.library.opcheck(torch.ops.plantops.planted_linear_backward.default, backward)


@pytest.mark.cpu_only
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic: bool):
    torch._dynamo.reset()
    shape = SHAPES[0]
    compiled = torch.compile(planted, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for lead in ((3,), (4,)):
        weight, bias, t = problem(shape, lead)
        eager, fast = (f(shape, weight, bias, t, "relu", "auto") for f in (planted, compiled))
        torch.testing.assert_close(fast, eager)
        grads = [torch.autograd.grad(y.square().sum(), list(t.values())) for y in (fast, eager)]
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


@pytest.mark.cpu_only
def test_autocast_casts_as_linear_does():
    shape = SHAPES[0]
    weight, bias, t = problem(shape, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = planted(shape, weight, bias, t, "none", "auto"), F.linear(t["input"], t["weight_out"])
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), joined(shape, weight, bias, t, "none"), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert {tensor.grad.dtype for tensor in t.values()} == {torch.float32}


def test_nan_propagates_and_relu_is_flat_at_zero():
    x = torch.tensor([[0.0], [1.0], [float("nan")]], requires_grad=True)
    y = planted_linear(x, torch.ones(1, 1), activation="relu")
    assert torch.equal(y[:2], torch.tensor([[0.0], [1.0]]))
    assert y[2].isnan()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad[:2], torch.tensor([[0.0], [1.0]]))


@IMPLS
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_its_result_may_be_changed_in_place(lead, impl: str):
    shape = (5, 2, 4, 3, 2)
    weight, bias, t = problem(shape, lead)
    upstream = torch.randn(*lead, 7, dtype=F64)
    expected = torch.autograd.grad(joined(shape, weight, bias, t, "relu"), list(t.values()), upstream)
    ours = torch.autograd.grad(planted(shape, weight, bias, t, "none", impl).relu_(), list(t.values()), upstream)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_double_backward_raises():
    weight, bias, t = problem(SHAPES[0])
    y = planted(SHAPES[0], weight, bias, t, "none", "auto")
    (grad,) = torch.autograd.grad(y.square().sum(), t["input"], create_graph=True)
    with pytest.raises(RuntimeError, match="planted_linear: double backward is not supported"):
        grad.sum().backward()


def test_errors_name_argument_expectation_and_value():
    x, w, w_out, w_in = torch.randn(2, 5), torch.randn(4, 3), torch.randn(2, 5), torch.randn(4, 2)

    def fails(error, message: str, *args, **options) -> None:
        with pytest.raises(error, match=message):
            planted_linear(*args, **options)

    fails(ValueError, r"weight: expected \[F_out, F_in\], got \(3,\)", x, w[0])
    fails(ValueError, r"input: expected \[\*, 3 \+ 2\] features .*\(2, 4\)", x[:, :4], w, w_out, w_in)
    fails(ValueError, r"weight_out: expected shape \(2, 5\), got \(2, 4\)", x, w, w_out[:, :4], w_in)
    fails(ValueError, r"weight_in: expected shape \(4, 2\), got \(3, 2\)", x, w, w_out, w_in[:3])
    fails(ValueError, r"bias: expected shape \(4,\), got \(3,\)", x, w, w_out, w_in, torch.ones(3))
    fails(ValueError, r"bias_out: expected shape \(2,\), got \(3,\)", x, w, w_out, w_in, None, torch.ones(3))
    fails(ValueError, r"in_start: .*\[0, 3\], got -1", x, w, w_out, w_in, in_start=-1)
    fails(ValueError, r"addend: expected shape \(2, 6\), got \(6,\)", x, w, w_out, w_in, addend=torch.ones(6))
    fails(ValueError, "activation: .*'tanh'", x, w, w_out, w_in, activation="tanh")
    fails(ValueError, "weight: expected a frozen", x[:, :3], w.clone().requires_grad_())
    fails(TypeError, "weight: .*dtype torch.float32, got torch.bfloat16", x[:, :3], w.bfloat16())
    fails(NotImplementedError, "planted_linear: impl=.native. on c", x[:, :3], w, impl="native")
