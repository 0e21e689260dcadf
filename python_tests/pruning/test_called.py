"""Scores are those of the model as it is called: hooks, several inputs, any output, labels that count for nothing."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plantops import PlantopsError
from plantops.graph import trace
from plantops.planting import trace as trace_and_verify
from plantops.pruning import loss_increases, prune
from plantops.pruning.scores import batches_of, mean_loss

SEED = torch.Generator().manual_seed(4)
X = torch.randn(12, 3, 6, 6, generator=SEED, dtype=torch.float64)
Y = torch.arange(12) % 4


class Net(nn.Module):
    """Two sites; ``way`` leads from the second convolution's output to what the head reads."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: x.relu().mean((2, 3))) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3)
        self.rows, self.head, self.way = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 4), way

    def forward(self, x):
        return self.head(self.way(self, self.b(F.relu(self.a(x)))))


class Pair(Net):
    def forward(self, before, after=None, *, scale=None):
        old, new = (self.b(F.relu(self.a(image))).relu().mean((2, 3)) for image in (before, after))
        return self.head(old - new if scale is None else (old - new) * scale)


@dataclasses.dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class AsDictionary(Net):
    def forward(self, x):
        return {"logits": super().forward(x), "features": x}


class AsRecord(Net):
    def forward(self, x):
        return Output(super().forward(x))


class Segments(Net):
    """A label for every pixel."""

    def forward(self, x):
        return self.head(self.b(F.relu(self.a(x))).relu().permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def recurrent(net, x):
    return net.rows(x.flatten(2).transpose(1, 2))[0][:, -1]


def deciding(net, x):
    x = x.relu().mean((2, 3))
    return x * 2 if (x.detach().cpu().numpy().sum() > -1) else x


def made(kind: type[Net] = Net, *arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = kind(*arguments).double()
    with torch.no_grad():
        net.head.weight.mul_(20)  # so that channels matter
    return net


def hooked(register: str, where: str, hook: Callable) -> nn.Module:
    net = made()
    getattr(net.get_submodule(where), register)(hook)
    return net


def truth(net: nn.Module, loss_of: Callable[[], Tensor]) -> dict[str, list[float]]:
    """The increase of the loss when the weights that read a channel are 0, by calling the model."""
    found: dict[str, list[float]] = {}
    modes = [module.training for module in net.modules()]
    net.eval()
    with torch.no_grad():
        base = loss_of()
        for site, reader in (("a", net.b), ("b", net.head)):
            found[site] = []
            for channel in range(reader.weight.shape[1]):
                kept = reader.weight.clone()
                reader.weight[:, channel] = 0
                found[site].append(float(loss_of() - base))
                reader.weight.copy_(kept)
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    return found


def check(net: nn.Module, samples: Any, loss_of: Callable[[], Tensor], reason: str | None, **options: Any) -> None:
    plan = trace(net, batches_of(samples)[0][0])
    plan = type(plan)([plan[name] for name in ("a", "b") if name in plan])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = loss_increases(net, plan, samples, **options)
    said = [str(warning.message) for warning in caught if "called once for each channel" in str(warning.message)]
    assert (len(said), reason or "") == (int(reason is not None), reason or "")
    assert all(reason in text for text in said if reason)
    expected = truth(net, loss_of)
    assert max(map(abs, expected["a"])) > 1e-3
    assert plan
    for name in plan:
        assert scores[name].tolist() == pytest.approx(expected[name], rel=1e-8, abs=1e-12), name


HOOKS = {
    "pre-hook of the model": ("register_forward_pre_hook", "", lambda module, x: (x[0] * 2 - 1,)),
    "hook of the model": ("register_forward_hook", "", lambda module, x, y: y * 1.5 + y.roll(1, 1)),
    "pre-hook of a reader": ("register_forward_pre_hook", "b", lambda module, x: (x[0] + 1,)),
    "hook of a producer": ("register_forward_hook", "a", lambda module, x, y: y * y),
    "hook that looks": ("register_forward_hook", "a", lambda module, x, y: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_count(kind: str):
    net = hooked(*HOOKS[kind])
    check(net, [(X[:5], Y[:5]), (X[5:], Y[5:])], lambda: F.cross_entropy(net(X), Y), "has a hook")
    assert len(net.b._forward_pre_hooks) == (kind == "pre-hook of a reader")


def test_a_backward_hook_changes_no_loss():
    net = hooked("register_full_backward_hook", "a", lambda module, got, _: got)
    check(net, (X, Y), lambda: F.cross_entropy(net(X), Y), None)


@pytest.mark.parametrize(
    ("way", "reason"), [(recurrent, "for several channels at once"), (deciding, None)], ids=["recurrent", "deciding"]
)
def test_layers_and_forwards_that_cannot_be_run_for_several_channels(way: Callable, reason: str | None):
    net = made(Net, way)
    if way is deciding:  # no graph, so no site; nothing is scored
        assert not trace(net, X)
        return
    with torch.no_grad():
        net.rows.weight_ih_l0.mul_(5)
    plan = trace(net, X)
    assert list(plan) == ["a"]
    with pytest.warns(UserWarning, match=f"called once for each channel.*{reason}"):
        scores = loss_increases(net, plan, (X, Y))
    expected = truth(net, lambda: F.cross_entropy(net(X), Y))["a"]
    assert scores["a"].tolist() == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_two_inputs_by_position_and_by_name():
    net = made(Pair)
    other, scale = X.flip(0) * 2, torch.full((1,), 1.5, dtype=torch.float64)
    check(net, [((X, other), Y)], lambda: F.cross_entropy(net(X, other), Y), None)
    check(net, ((X, other), Y), lambda: F.cross_entropy(net(X, other), Y), None)
    keywords = {"before": X, "after": other, "scale": scale}
    check(net, [(keywords, Y)], lambda: F.cross_entropy(net(**keywords), Y), None)
    for criterion in ("magnitude", "loss"):
        plan = trace(net, keywords)
        result = prune(net, plan, [(keywords, Y)], max_parameters=350, criterion=criterion)
        with torch.no_grad():
            right = F.cross_entropy(result.model(**keywords), Y).item()
        assert result.loss[1] == pytest.approx(right, rel=1e-12)
        assert result.parameters[1] < result.parameters[0]
        assert result.macs[0] == 2 * (5 * 27 * 16 + 6 * 45 * 4) + 24


@pytest.mark.parametrize("kind", [AsDictionary, AsRecord])
def test_outputs_that_hold_logits(kind: type[Net]):
    net = made(kind)

    def logits(x: Tensor) -> Tensor:
        return Net.forward(net, x)

    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), functools.partial(F.cross_entropy, label_smoothing=0.0)):
        check(net, (X, Y), lambda: F.cross_entropy(logits(X), Y), None, loss=loss)

    def of_whole(output, labels):
        return F.cross_entropy(output["logits"] if isinstance(output, dict) else output.logits, labels)

    check(net, (X, Y), lambda: F.cross_entropy(logits(X), Y), None, loss=of_whole)

    class Neither(Net):
        def forward(self, x):
            return {"scores": super().forward(x)}

    with pytest.raises(PlantopsError, match=r"must return logits: .* got dict with scores"):
        mean_loss(made(Neither), [(X, Y)])


IGNORED = {
    "default": (F.cross_entropy, -100),
    "partial": (functools.partial(F.cross_entropy, ignore_index=255), 255),
    "module": (nn.CrossEntropyLoss(ignore_index=7), 7),
}


@pytest.mark.parametrize("name", IGNORED)
def test_ignored_labels_count_for_nothing(name: str):
    loss, ignored = IGNORED[name]
    net, some = made(), Y.clone()
    some[[0, 3, 4, 7]] = ignored
    none = torch.full_like(Y[:4], ignored)
    batches = [(X[:5], some[:5]), (X[:4] + 1, none), (X[5:], some[5:])]
    check(net, batches, lambda: F.cross_entropy(net(X), some, ignore_index=ignored), None, loss=loss)
    plan = trace(net, X)
    right = prune(net, plan, [batches[0], batches[2]], max_parameters=300, loss=loss)
    got = prune(net, plan, batches, max_parameters=300, loss=loss)
    assert [step.removed for step in got.steps] == [step.removed for step in right.steps]
    assert got.loss == right.loss
    for score in (mean_loss, lambda net, samples, loss: prune(net, plan, samples, max_parameters=9, loss=loss)):
        with pytest.raises(PlantopsError, match=rf"at least one label that is not ignored \({ignored}\), got none"):
            score(net, [(X[:4], none)], loss)


def test_a_label_for_every_pixel():
    net = made(Segments)
    labels = torch.randint(0, 4, (12, 2, 2), generator=torch.Generator().manual_seed(0))
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.4] = -100
    labels[4:6] = -100
    batches = [(X[:4], labels[:4]), (X[4:6], labels[4:6]), (X[6:], labels[6:])]
    check(net, batches, lambda: F.cross_entropy(net(X), labels), None)


def test_no_score_is_not_a_number():
    net = made()
    plan = trace(net, X)

    def unlabelled(output, labels):
        return F.cross_entropy(output, labels)  # which labels it ignores is not to be seen

    batches = [(X[:8], Y[:8]), (X[8:], torch.full((4,), -100))]
    with pytest.raises(PlantopsError, match="the model's loss is NaN for labelled batch number 1 of 2"):
        prune(net, plan, batches, max_parameters=100, loss=unlabelled)
    with pytest.raises(PlantopsError, match=r"the loss without channels \[0\] of a is NaN"):
        loss_increases(net, plan, batches, loss=unlabelled)
    assert math.isfinite(mean_loss(net, batches))


def test_samples_of_every_form():
    net = made()
    plan, expected = trace(net, X), mean_loss(net, [(X, Y)])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=5)
    for samples in ((X, Y), [X, Y], [(X, Y)], [(X[:6], Y[:6]), (X[6:], Y[6:])], loader, iter([(X, Y)])):
        result = prune(net, plan, samples, max_parameters=400, criterion="magnitude")
        assert result.loss[0] == pytest.approx(expected, rel=1e-12)
    for samples, message in (
        (None, r"samples must be \(inputs, labels\) or batches of such pairs, got nothing"),
        (X, r"samples must be \(inputs, labels\) or batches of such pairs, got Tensor"),
        ([X], r"must hold pairs \(inputs, labels\) with labels in a tensor, got a Tensor"),
        ([(X, Y, Y)], "got a tuple of 3 entries"),
        ([(X, [1, 2])], "got a tuple of 2 entries"),
        ([], "samples must hold batches of at least one sample"),
        ([(X[:0], Y[:0])], "samples must hold batches of at least one sample"),
    ):
        for criterion in ("loss", "magnitude"):
            with pytest.raises(PlantopsError, match=message):
                prune(net, plan, samples, max_parameters=400, criterion=criterion)


def test_each_step_is_told_and_a_network_that_cannot_be_called_is_named():
    net, told = made(), []
    result = prune(net, trace(net, X), (X, Y), max_parameters=300, step_done=told.append)
    assert told == result.steps
    assert len(told) > 1
    scale = torch.rand(5, 1, 1, dtype=torch.float64)
    net = hooked("register_forward_hook", "a", lambda module, x, y: y * scale)
    plan = type(trace(net, X))([trace(net, X)["a"]])
    with pytest.raises(PlantopsError, match="model cannot be called without channels of a: The size of tensor"):
        prune(net, plan, (X, Y), max_parameters=300, criterion="magnitude")
    assert "a" not in trace_and_verify(net, X)
