"""What a graph does not show: the shared sweep gives what the loop gives, or is the loop and says why."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plantops import PlantopsError
from plantops.planting import Planter, PlanterConfig
from plantops.planting.candidate import sweep_loop
from plantops.planting.sweep.round import sweep_shared
from plantops.train.run import Run
from plantops.train.session import Session
from python_tests.planting.sweeps import images, records, trained


class Net(nn.Module):
    """Two convolutions in a row, a container, a head; ``way`` leads from the first to the second."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Sequential(nn.Conv2d(5, 6, 3), nn.ReLU())
        self.c, self.fc, self.way, self.count = nn.Conv2d(6, 6, 1), nn.Linear(6, 5), way, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c(self.b(self.way(self, x)))).mean((2, 3)))


class Scaled(torch.autograd.Function):
    """The value itself, with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -0.5 * gradient


class Mode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 3 if self.training else x


class Sequence(nn.Module):
    """A recurrent layer, with its tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.lstm(x.flatten(2).transpose(1, 2))
        return rows.transpose(1, 2).unflatten(2, x.shape[2:])


def plain(model, x):
    return F.relu(model.a(x))


def no_grad(model, x):
    with torch.no_grad():
        return plain(model, x)


def autocast(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return plain(model, x).float()


def detached(model, x):
    return plain(model, x).detach()


def without_gradient(model, x):
    model.a.requires_grad_(False)
    return plain(model, x)


def counted(model, x):
    model.count += 1
    return plain(model, x) * (1 + model.count // 1000)


def asked(model, x):
    return plain(model, x) * (1.5 if torch.is_grad_enabled() else 1)


def backward_of_its_own(model, x):
    return Scaled.apply(plain(model, x))


def through_a_view(model, x):
    x = model.a(x)
    x[:, :, 1:].mul_(2)
    return F.relu(x)


def hooked(register: str, where: str, hook: Callable) -> Callable[[nn.Module], None]:
    return lambda model: getattr(model.get_submodule(where), register)(hook) and None


def module(name: str, made: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda model: model.add_module(name, made())


# name -> (way, change of the model, the reason for the loop or None for one pass)
def doubled(module, gradients, _):
    return tuple(None if gradient is None else gradient * 2 for gradient in gradients)


KINDS = {
    "plain": (plain, None, None),
    "pre-hook of the model": (plain, hooked("register_forward_pre_hook", "", lambda m, x: (x[0] * 2,)), "has a hook"),
    "hook of a container": (plain, hooked("register_forward_hook", "b", lambda m, x, y: y + 1), "layer b has a hook"),
    "hook of a layer": (plain, hooked("register_forward_hook", "a", lambda m, x, y: y * y), "its layer a has a hook"),
    "backward hook": (
        plain, hooked("register_full_backward_hook", "b.0", doubled), "its layer b.0 has a hook"
    ),
    "frozen by its owner": (plain, lambda model: model.a.requires_grad_(False) and None, None),
    "detached": (detached, None, None),
    "no_grad": (no_grad, None, "under torch.no_grad"),
    "autocast": (autocast, None, "changes autocast"),
    "requires_grad on the way": (without_gradient, None, "changes a.(weight|bias)"),
    "counter": (counted, None, "changes count"),
    "asks for gradients": (asked, None, "along the graph are not those of a call"),
    "backward of its own": (backward_of_its_own, None, "in an autograd.Function"),
    "through a view": (through_a_view, None, "in place|not those of a call"),
    "mode of a module": (lambda model, x: model.mode(plain(model, x)), module("mode", Mode), None),
    "recurrent": (lambda model, x: model.rows(plain(model, x)), module("rows", Sequence), None),
}  # fmt: skip


def search(kind: str, run: Run) -> Planter:
    way, change, _ = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, teacher = Net(way), nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        if change is not None:
            change(model)
    # The sites that a step can reach: in front of a part without gradients nothing trains.
    sites = ("b.0",) if kind in ("no_grad", "detached", "requires_grad on the way") else ()
    lr = 5.0 if kind == "recurrent" else 0.05  # its gradients are small
    config = PlanterConfig(channels=2, epochs=2, batch_size=10, lr=lr, init="kaiming", sites=sites)
    return Planter(model, teacher, images(30, 0), images(20, 1), config, session=Session(run))


@pytest.mark.filterwarnings("ignore:the candidates are trained one after the other")
@pytest.mark.parametrize("kind", KINDS)
def test_shared_is_the_loop(kind: str, tmp_path: Path) -> None:
    reason = KINDS[kind][2]
    with Run.create(tmp_path / "loop", {}) as run:
        one = search(kind, run)
        loop, start, expected = trained(one, sweep_loop, list(one.config.sites) or None)
    with Run.create(tmp_path / "shared", {}) as run:
        shared, _, actual = trained(search(kind, run), sweep_shared, list(one.config.sites) or None)
    (record,) = records(tmp_path / "shared", "sweep")
    if reason is None:
        assert record["mode"] == "shared", record
    else:
        assert record["mode"] == "loop"
        assert re.search(reason, record["reason"]), record["reason"]
    assert len(loop) == len(shared) >= 1
    for a, b, begin, want, got in zip(loop, shared, start, expected, actual, strict=True):
        assert (want - begin).norm() > 1e-3 * want.norm(), "nothing was trained"
        assert (got - want).norm() <= 1e-3 * (want - begin).norm(), a.name
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


def between_layers(model, x):
    with torch.inference_mode():
        return plain(model, x)


class Still(Net):
    """Producer and reader are both without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.b(self.way(self, x))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


UNTRAINABLE = {
    "inference tensors": (Net(between_layers), ("b.0",), "ends in RuntimeError: Inference tensors cannot be saved"),
    "no gradient at a site": (Still(plain), ("a",), "site a cannot be trained: its new channels get no gradient"),
}


@pytest.mark.parametrize("sweep", ["shared", "loop"])
@pytest.mark.parametrize("kind", UNTRAINABLE)
def test_what_cannot_train_is_said_before_the_first_step(kind: str, sweep: str) -> None:
    model, sites, message = UNTRAINABLE[kind]
    config = PlanterConfig(sites=sites, sweep=sweep, objective="ce")
    with pytest.raises(PlantopsError, match=message):
        Planter(model, nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), images(30, 0), images(20, 1), config)
