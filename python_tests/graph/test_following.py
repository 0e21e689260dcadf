"""A forward is followed only where its steps give what a call of the model gives."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module

from plantops.graph import trace
from plantops.graph.capture import Untraceable
from plantops.graph.forward import Forward

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Two convolutions, the second one in a container, with a ``way`` around or between them."""

    def __init__(self, way: Callable | None = None) -> None:
        super().__init__()
        self.a, self.inner = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU())
        self.fc, self.way, self.count = nn.Linear(5, 2), way, 0

    def forward(self, x):
        return self.fc((self.inner(self.a(x)) if self.way is None else self.way(self, x)).mean((2, 3)))


def net(way: Callable | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(way).double().eval()


def doubled(module, *args):
    return (args[0][0] * 2,) if len(args) == 1 else args[-1] * 2


REGISTER = {
    "forward pre-hook": ("register_forward_pre_hook", doubled),
    "forward hook": ("register_forward_hook", doubled),
    "backward hook": ("register_full_backward_hook", lambda module, before, after: None),
    "backward pre-hook": ("register_full_backward_pre_hook", lambda module, after: None),
}


@pytest.mark.parametrize("where", ["", "a", "inner", "inner.1"])
@pytest.mark.parametrize("kind", REGISTER)
def test_hooks(kind: str, where: str):
    model, (register, hook) = net(), REGISTER[kind]
    handle = getattr(model.get_submodule(where), register)(hook)
    place = f"its layer {where}" if where else "it"
    with pytest.raises(Untraceable, match=rf"^{place} has a hook \(.+\)"):
        Forward.of(model, (X,))
    if "backward" in kind:
        Forward.of(model, (X,), gradients=False)
    handle.remove()
    Forward.of(model, (X,))


def test_hooks_of_all_modules_and_forwards_that_were_replaced():
    model = net()
    for register in ("register_module_forward_pre_hook", "register_module_forward_hook"):
        handle = getattr(torch_module, register)(lambda *_: None)
        with pytest.raises(Untraceable, match="hooks are registered for all modules"):
            Forward.of(model, (X,))
        handle.remove()
    model.a.forward = functools.partial(nn.Conv2d.forward, model.a)
    with pytest.raises(Untraceable, match="the forward of its layer a was replaced"):
        Forward.of(model, (X,))

    class Called(Net):
        def __call__(self, x):
            return super().__call__(x / 255)

    with pytest.raises(Untraceable, match="a __call__ of its own"):
        Forward.of(Called().double(), (X,))
    called = nn.Sequential(Called().double())  # inside of another it is followed, too
    forward = Forward.of(called, (X,))
    torch.testing.assert_close(run(forward, X), called(X))


def run(forward: Forward, *inputs, **keywords):
    values = forward.given(inputs, keywords)
    for step in forward.steps:
        values[step.name] = forward.run_of(step)(values)
    return forward.result(values)


def under(context: Callable) -> Callable:
    def way(model, x):
        with context():
            x = model.a(x)
        return model.inner(x)

    return way


def decorated(model, x):
    return model.inner(torch.no_grad()(lambda value: model.a(value))(x))


def left_off(model, x):
    torch.set_grad_enabled(False)
    return model.inner(model.a(x))


def switching(model, x):
    model.a.requires_grad_(False)
    return model.inner(model.a(x))


def counting(model, x):
    model.count += 1
    return model.inner(model.a(x) * (1 if model.count % 1000 else 2))


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


WAYS = {
    "no_grad": (under(torch.no_grad), r"under torch.no_grad, or in an autograd.Function \(at a\)", True),
    "decorated": (decorated, r"under torch.no_grad, or in an autograd.Function \(at a\)", True),
    "set_grad_enabled": (left_off, r"under torch.no_grad, or in an autograd.Function \(at a\)", True),
    "inference_mode": (under(torch.inference_mode), r"under torch.inference_mode \(at a\)", True),
    "autocast": (under(autocast), r"changes autocast on its way \(at a\)", False),
    "requires_grad": (switching, r"changes a\.(weight|bias) each time it runs", False),
    "counter": (counting, r"changes count each time it runs", False),
}


@pytest.mark.parametrize("name", WAYS)
def test_modes_and_changes_on_the_way(name: str):
    way, message, about_gradients = WAYS[name]
    model = net(way)
    for caller in (torch.enable_grad, torch.no_grad, torch.inference_mode):  # whatever the caller's own mode is
        before = torch.is_grad_enabled()
        with caller():
            with pytest.raises(Untraceable, match=message):
                Forward.of(model, (X,))
            if about_gradients:
                forward = Forward.of(model, (X,), gradients=False)
                with torch.no_grad():
                    assert torch.equal(run(forward, X), model(X))
        torch.set_grad_enabled(before)
    assert all(parameter.requires_grad for parameter in net(way).parameters())
    with autocast():  # of the caller alone
        Forward.of(net(), (X,))


def test_functions_with_a_backward_of_their_own():
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    with pytest.raises(Untraceable, match=r"in an autograd.Function"):
        Forward.of(net(lambda model, x: model.inner(Same.apply(model.a(x)))), (X,))


def read_again(change: Callable) -> Callable:
    def way(model, x):
        x = model.a(x)
        change(model, x)
        return model.inner(x)

    return way


IN_PLACE = {
    "method": lambda model, x: x.relu_(),
    "function": lambda model, x: torch.relu_(x),
    "argument": lambda model, x: F.relu(x, inplace=True),
    "position": lambda model, x: F.relu(x, True),
    "layer": lambda model, x: model.act(x),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_changed_in_place_and_read_again(name: str):
    model = net(read_again(IN_PLACE[name]))
    model.act = nn.ReLU(inplace=True)
    with pytest.raises(Untraceable, match="changes a tensor in place that inner_0 reads again"):
        Forward.of(model, (X,))


def test_what_is_changed_in_place_and_not_read_again():
    model = net(lambda model, x: model.inner(F.relu(model.a(x), inplace=True)).add_(1))
    torch.testing.assert_close(run(Forward.of(model, (X,)), X), model(X))


def test_requires_grad_as_a_step():
    model = net(lambda model, x: model.inner(model.a(x).detach().requires_grad_(False)))
    with pytest.raises(Untraceable, match=r"changes a tensor in place \(requires_grad_\)"):
        Forward.of(model, (X,))


class Two(nn.Module):
    """Several inputs, one of them nested, and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x, others, *, scale=None, flag=True):
        y = self.b(self.a(x) + self.a(others["image"]))
        return {"logits": y if scale is None else y * scale, "pair": (y, [others["image"]])}


def test_several_inputs_and_outputs():
    model = Two().double()
    inputs, keywords = (X, {"image": X.flip(0), "unused": 3}), {"scale": torch.full((1,), 2.0, dtype=torch.float64)}
    assert list(trace(model, inputs, example_kwargs=keywords)) == ["a"]
    forward = Forward.of(model, inputs, keywords)
    found, expected = run(forward, *inputs, **keywords), model(*inputs, **keywords)
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found["pair"][1][0], expected["pair"][1][0])
    other = (X[:1] * 3, {"image": X[1:2], "unused": 3})
    assert torch.equal(run(forward, *other, **keywords)["logits"], model(*other, **keywords)["logits"])
    with pytest.raises(Untraceable, match="takes 3 tensors, where one is expected"):
        _ = forward.input
    with pytest.raises(Untraceable, match="gives something else than one tensor"):
        _ = forward.output


def test_the_trace_calls_no_hook_of_an_activation():
    seen = []
    model = net()
    model.inner = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 5, 3).double())
    model.inner[0].register_forward_hook(lambda *_: seen.append(1))
    assert trace(model, X)["a"].slope_at_zero == 0
    assert seen == []
