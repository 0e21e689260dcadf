"""carry_state over optimizers of every kind: what they keep, where they count, and what they wrap."""

import importlib
import sys
from collections import defaultdict, deque
from pathlib import Path

import pytest
import torch
from torch import nn

from plantops import carry_state, merge, plant
from plantops.graph import trace
from plantops.planting.trunk import planted_parameters
from plantops.pruning import remove_channels
from python_tests.planting.networks import seeded

X = torch.randn(4, 3, 8, 8, generator=seeded(3), dtype=torch.float64)


class Kind(torch.optim.Optimizer):
    """An optimizer whose state is made at the first step and whose step is ``move``."""

    def __init__(self, parameters, lr=0.05, beta=0.9, **defaults):
        super().__init__(parameters, {"lr": lr, "beta": beta, **defaults})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad, self.state[parameter], group)


class InLists(Kind):
    def move(self, parameter, gradient, state, group):
        momenta = state.setdefault("momenta", [torch.zeros_like(parameter) for _ in range(2)])
        for momentum, decay in zip(momenta, (0.5, 0.9), strict=True):
            momentum.mul_(decay).add_(gradient)
            parameter.sub_(momentum, alpha=group["lr"])


class InDictionaries(Kind):
    def move(self, parameter, gradient, state, group):
        momenta = state.setdefault("momenta", {decay: (torch.zeros_like(parameter), "kept") for decay in (0.5, 0.9)})
        for decay, (momentum, _) in momenta.items():
            momentum.mul_(decay).add_(gradient)
            parameter.sub_(momentum, alpha=group["lr"])


class Masked(Kind):
    """Entries whose gradient changed its sign rest, by a mask; so many, by whole numbers."""

    def move(self, parameter, gradient, state, group):
        state.setdefault("turns", torch.zeros_like(parameter, dtype=torch.int32))
        turned = state.setdefault("up", gradient > 0) != (gradient > 0)
        state["turns"] += turned
        parameter.sub_(gradient * ~turned / (1 + state["turns"]), alpha=group["lr"])
        state["up"] = gradient > 0


class CopyOfWeights(Kind):
    """Weights are what lies between a start that is remembered and a sum: dual averaging."""

    def move(self, parameter, gradient, state, group):
        if not state:
            state["start"], state["sum"] = parameter.clone(), torch.zeros_like(parameter)
        parameter.copy_(state["start"] - group["lr"] * state["sum"].add_(gradient))


class AverageOfWeights(Kind):
    """Weights are pulled to their average, which begins at 0 and is divided by ``1 - beta^step``."""

    def move(self, parameter, gradient, state, group):
        average = state.setdefault("average", torch.zeros_like(parameter))
        average.lerp_(parameter, 1 - group["beta"])
        parameter.lerp_(average / (1 - group["beta"] ** group["step"]), 0.3).sub_(gradient, alpha=group["lr"])


class CountInGroup(Kind):
    """Adam, counted in the group, with averages of other names."""

    def move(self, parameter, gradient, state, group):
        first = state.setdefault("m", torch.zeros_like(parameter))
        second = state.setdefault("v", torch.zeros_like(parameter))
        first.lerp_(gradient, 1 - group["beta"])
        second.lerp_(gradient * gradient, 1 - group["beta_square"])
        first = first / (1 - group["beta"] ** group["step"])
        second = second / (1 - group["beta_square"] ** group["step"])
        parameter.sub_(first / (second.sqrt() + 1e-12), alpha=group["lr"])


class NotCorrected(Kind):
    """The same names and counts, and nothing is divided: sign momentum."""

    def move(self, parameter, gradient, state, group):
        first = state.setdefault("m", torch.zeros_like(parameter)).lerp_(gradient, 1 - group["beta"])
        parameter.sub_(first, alpha=group["lr"])


class FirstTime(Kind):
    """Its state begins with the first gradient."""

    def move(self, parameter, gradient, state, group):
        if "previous" in state:
            parameter.sub_(gradient * 2 - state["previous"], alpha=group["lr"])
        state["previous"] = gradient.clone()


class Slow(torch.optim.Optimizer):
    """Weights that follow those of an inner optimizer every third step; its state is its own."""

    def __init__(self, inner):
        self.inner, self.state, self.defaults = inner, defaultdict(dict), inner.defaults
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        for group in self.param_groups:
            self._start(group)

    @property
    def param_groups(self):
        return self.inner.param_groups

    def add_param_group(self, group):
        self.inner.add_param_group(group)
        self._start(self.param_groups[-1])

    def _start(self, group):
        for parameter in group["params"]:
            self.state[parameter]["slow"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step(closure)
        for group in self.param_groups:
            group["turn"] = group.get("turn", 0) + 1
            for parameter in group["params"]:
                if group["turn"] % 3 == 0:
                    slow = self.state[parameter]["slow"].lerp_(parameter, 0.5)
                    parameter.copy_(slow)


class SlowInside(torch.optim.Optimizer):
    """The same with shared groups, and in the inner optimizer's state, where it comes at the third step."""

    def __init__(self, inner):
        self.wrapped, self.param_groups, self.defaults = [inner], inner.param_groups, inner.defaults
        self.state = defaultdict(dict)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        for group in self.param_groups:
            group.setdefault("turn", 0)
        self.defaults["turn"] = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.wrapped[0].step(closure)
        for group in self.param_groups:
            group["turn"] += 1
            for parameter in group["params"]:
                if group["turn"] % 3 == 0:
                    state = self.wrapped[0].state[parameter]
                    state["slow"] = state.get("slow", parameter.clone()).lerp_(parameter, 0.5)
                    parameter.copy_(state["slow"])


class Through(torch.optim.Optimizer):
    """As accelerate wraps: groups and state are those of the inner optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def add_param_group(self, group):
        self.optimizer.add_param_group(group)

    def step(self, closure=None):
        self.optimizer.step(closure)


def adamw(parameters):
    return torch.optim.AdamW(parameters, 0.05, weight_decay=0.0)


KINDS = {
    "lists": InLists,
    "dictionaries": InDictionaries,
    "masks and whole numbers": Masked,
    "copy of weights": CopyOfWeights,
    "average of weights": AverageOfWeights,
    "count in the group": lambda p: CountInGroup(p, beta_square=0.99),
    "not corrected": NotCorrected,
    "first time": FirstTime,
    "inner": lambda p: Slow(adamw(p)),
    "inner, slow weights in its state": lambda p: SlowInside(adamw(p)),
    "inner of inner": lambda p: Slow(Slow(torch.optim.SGD(p, 0.05, momentum=0.9))),
    "handed through": lambda p: Through(adamw(p)),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.05, t0=2, lambd=0.0),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.05),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05, initial_accumulator_value=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.05),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 3, padding=1)).double()


def train(model, optimizer, steps):
    for _ in range(steps):
        model.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def trained(make, steps=7):
    net = network()
    optimizer = make(list(net.parameters()))
    train(net, optimizer, steps)
    return net, optimizer


@pytest.mark.parametrize("steps", [2, 7, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_old_slices_step_as_if_nothing_had_grown_and_new_ones_stay_where_they_are(kind, steps):
    """The growth keeps the function; new filters, which nothing reads yet, have no gradient."""
    net, optimizer = trained(KINDS[kind], steps)
    twin, other = trained(KINDS[kind], steps)
    planted = plant(net, trace(net, X)["0"], 4)
    merged = merge(planted)
    assert carry_state(optimizer, planted, merged) is optimizer
    filters = merged[0].weight.detach()[6:].clone()
    for _ in range(2):
        train(merged, optimizer, 1)
        train(twin, other, 1)
        if not _:
            torch.testing.assert_close(merged[0].weight.detach()[6:], filters, rtol=0, atol=1e-12)
            for grown, alone in zip(merged.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(grown[tuple(map(slice, alone.shape))], alone, rtol=0, atol=1e-12)
    assert not torch.equal(merged[0].weight.detach()[6:], filters)


# The newest gradient weighs (1 - beta) / (1 - beta^step), so less under the count of 10 than under that of 7: by 0.04
# for beta = 0.9. All other kinds make the step that the block's own optimizer would have made.
NEWEST = {
    "count in the group",
    "average of weights",
    "inner",
    "inner, slow weights in its state",
    "handed through",
    "RAdam",
}


@pytest.mark.parametrize("kind", KINDS)
def test_slices_that_another_optimizer_trained_go_on(kind):
    net, optimizer = trained(KINDS[kind], 9)
    planted = plant(net, trace(net, X)["0"], 4, "kaiming", generator=seeded(1))
    blocks = KINDS[kind](planted_parameters(planted))
    train(planted, blocks, 6)
    merged = merge(planted)
    start = merged[0].weight.detach()[6:].clone()
    carry_state(optimizer, planted, merged, blocks)
    train(merged, optimizer, 1)
    train(planted, blocks, 1)
    expected = planted[0].weight_out.detach() - start
    error = (merged[0].weight.detach()[6:] - start - expected).norm() / expected.norm()
    assert error < (0.1 if kind in NEWEST else 1e-9), float(error)


def test_blocks_that_radam_has_not_rectified_yet_go_on_at_their_pace():
    """It divides by the second moment from the sixth step on only; the parameter that they join did long ago."""
    net, optimizer = trained(KINDS["RAdam"], 9)
    planted = plant(net, trace(net, X)["0"], 4, "kaiming", generator=seeded(1))
    blocks = KINDS["RAdam"](planted_parameters(planted))
    train(planted, blocks, 3)
    merged = merge(planted)
    start = merged[0].weight.detach()[6:].clone()
    carry_state(optimizer, planted, merged, blocks)
    train(merged, optimizer, 1)
    train(planted, blocks, 1)
    expected = planted[0].weight_out.detach() - start
    assert 0.9 < (merged[0].weight.detach()[6:] - start).norm() / expected.norm() < 1.1


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_slices_leave_the_others_as_they_are(kind):
    """A filter that nothing reads goes: the others step as they would have."""
    net, optimizer = trained(KINDS[kind])
    twin, other = trained(KINDS[kind])
    with torch.no_grad():
        for model in (net, twin):
            model[2].weight[:, 5] = 0
    narrow = remove_channels(net, trace(net, X), {"0": [5]}, optimizer=optimizer)
    train(narrow, optimizer, 1)
    train(twin, other, 1)
    assert len({id(p) for group in optimizer.param_groups for p in group["params"]}) == 4
    for small, large in zip(narrow.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(small, large[tuple(map(slice, small.shape))].detach(), rtol=0, atol=1e-12)


class Odd:
    pass


class Packed(torch.Tensor):
    pass


def keeps(make):
    class Keeps(Kind):
        def move(self, parameter, gradient, state, group):
            make(self, parameter, state, group)

    return Keeps


REFUSED = {
    "an object": (lambda o, p, s, g: s.update(kept=Odd()), r"keeps 'kept', a Odd, for"),
    "a packed tensor": (
        lambda o, p, s, g: s.update(kept=torch.zeros_like(p).as_subclass(Packed)), r"keeps 'kept', a Packed, for",
    ),
    "rows": (lambda o, p, s, g: s.update(kept=p.reshape(len(p), -1).sum(1)), r"keeps 'kept', a tensor of \[6\], for"),
    "squares": (
        lambda o, p, s, g: s.update(kept=[torch.eye(n, dtype=p.dtype) for n in p.shape]), r"keeps 'kept'\[0\], a ten",
    ),
    "a history": (
        lambda o, p, s, g: s.setdefault("kept", deque(maxlen=9)).append(torch.eye(2)), r"keeps 'kept'\[0\], a tensor",
    ),
    "an attribute": (lambda o, p, s, g: vars(o).setdefault("kept", []).append(p.clone()), r"a tensor of .* in kept"),
    "parameters": (lambda o, p, s, g: vars(o).setdefault("kept", {}).update({p: 1}), "keeps parameters in kept"),
    "the group": (lambda o, p, s, g: g.update(kept=[torch.ones(3)]), r"keeps a tensor of \[3\] in param_groups\[0\]"),
    "a word": (lambda o, p, s, g: o.state["all"].update(kept=torch.ones(3)), r"a tensor of \[3\] in state\['all'\]"),
    "moving weights": (
        lambda o, p, s, g: (s.setdefault("kept", torch.zeros_like(p)), p.mul_(0.5)), "moves weights that have no grad",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused_and_nothing_changes(kind):
    make, message = REFUSED[kind]
    net, optimizer = trained(keeps(make), 1)
    planted = plant(net, trace(net, X)["0"], 4)
    held = list(optimizer.param_groups[0]["params"])
    with pytest.raises(ValueError, match=f"state: .*{message}"):
        carry_state(optimizer, planted, merge(planted))
    assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))
    assert all(parameter in optimizer.state for parameter in held if kind not in ("an attribute", "the group"))


def test_squares_that_have_the_size_of_the_weight_are_no_averages():
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    optimizer = keeps(lambda o, p, s, g: s.update(kept=torch.eye(p.shape[0], dtype=p.dtype)))(net.parameters())
    x = torch.randn(2, 8, dtype=torch.float64)
    net(x).sum().backward()
    optimizer.step()
    planted = plant(net, trace(net, x, grow_linear=True)["0"], 8)
    with pytest.raises(ValueError, match=r"keeps 'kept', a tensor of \[8, 8\], for 0.weight of \[8, 8\]"):
        carry_state(optimizer, planted, merge(planted))
    with pytest.raises(ValueError, match=r"optimizer: Keeps keeps 'kept', a tensor of \[8, 8\], for 0.weight"):
        remove_channels(net, trace(net, x, grow_linear=True), {"0": [1]}, optimizer=optimizer)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), adamw, ("SGD", "AdamW")),
        (
            lambda p: Slow(torch.optim.SGD(p, 0.1, momentum=0.9)),
            lambda p: Slow(adamw(p)),
            (r"Slow\(SGD\)", r"Slow\(AdamW\)"),
        ),
    ],
)
def test_two_kinds_are_refused_by_name(old, new, names):
    net, optimizer = trained(old)
    planted = plant(net, trace(net, X)["0"], 4)
    blocks = new(planted_parameters(planted))
    train(planted, blocks, 2)
    with pytest.raises(TypeError, match=f"kind of state, {names[0]}, got {names[1]}: .*Leave planted_state out"):
        carry_state(optimizer, planted, merge(planted), blocks)
    merged = merge(planted)
    carry_state(optimizer, planted, merged)
    train(merged, optimizer, 1)


def test_one_of_the_two_may_be_wrapped():
    for old, new in ((lambda p: Slow(adamw(p)), adamw), (adamw, lambda p: Slow(adamw(p)))):
        net, optimizer = trained(old)
        planted = plant(net, trace(net, X)["0"], 4)
        blocks = new(planted_parameters(planted))
        train(planted, blocks, 2)
        merged = merge(planted)
        carry_state(optimizer, planted, merged, blocks)
        state = (optimizer.inner if isinstance(optimizer, Slow) else optimizer).state
        brought = (blocks.inner if isinstance(blocks, Slow) else blocks).state[planted[0].weight_out]["exp_avg"]
        carried = state[merged[0].weight]["exp_avg"][6:]
        torch.testing.assert_close(carried, brought * (1 - 0.9**7) / (1 - 0.9**2))
        if isinstance(optimizer, Slow):
            assert torch.equal(optimizer.state[merged[0].weight]["slow"][6:], merged[0].weight.detach()[6:])
        train(merged, optimizer, 4)


def test_no_generator_moves_and_no_hook_runs():
    net, optimizer = trained(adamw)
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("a hook of the user's"))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    planted = plant(net, trace(net, X)["0"], 4)
    before, weights = torch.get_rng_state(), [p.detach().clone() for p in net.parameters()]
    carry_state(optimizer, planted, merge(planted))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))
    assert schedule.optimizer is optimizer


# -- every optimizer that is installed ------------------------------------------------------------------------------


def script():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("optimizers")
    finally:
        sys.path.remove(folder)


OUTCOMES = {
    "Adafactor": "refused", "LBFGS": "refused", "ZeroRedundancyOptimizer(AdamW)": "refused", "SparseAdam": "not run",
}  # fmt: skip
CHOSEN = {
    "timm": ["adan", "radabelief", "adamp", "madgrad", "lookahead_adamw", "laprop"],
    "pytorch_optimizer": ["aggmo", "adan", "ademamix", "schedulefreeadamw", "Lookahead(AdamW)", "diffgrad", "prodigy"],
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, _ in script().torch_optimizers()])
def test_every_optimizer_of_torch(name):
    """Trunk bits under it, and what carry_state promises."""
    table = script()
    row = table.look_at("torch", name, dict(table.torch_optimizers())[name])
    assert row["outcome"] == OUTCOMES.get(name, "carried"), row
    if row["outcome"] == "carried":
        assert 0.3 < row["new_rows"] < 1.5 or row["couples"], row


@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in CHOSEN.items() for name in names])
def test_optimizers_of_other_packages(library, name):
    pytest.importorskip(library, reason=f"{library} is not installed")
    table = script()
    row = table.look_at(library, name, dict(table.LIBRARIES[library]())[name])
    assert row["outcome"] == "carried", row


@pytest.mark.parametrize("name", ["soap", "scalableshampoo", "sm3"])
def test_optimizers_of_other_packages_that_are_refused(name):
    pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")
    table = script()
    row = table.look_at("pytorch_optimizer", name, dict(table.LIBRARIES["pytorch_optimizer"]())[name])
    assert row["outcome"] == "refused", row


# -- schedule-free --------------------------------------------------------------------------------------------------


class Averaged(torch.optim.Optimizer):
    """Gradients at (1 - b) z + b x, where x is the mean of the z: schedule-free SGD."""

    def __init__(self, parameters, lr=0.1, b=0.9):
        super().__init__(parameters, {"lr": lr, "b": b, "k": 0, "train_mode": True})

    def train(self):
        self._switch(True)

    def eval(self):
        self._switch(False)

    @torch.no_grad()
    def _switch(self, mode):
        for group in self.param_groups:
            weight = 1 - group["b"] if mode else 1 - 1 / group["b"]
            for parameter in group["params"]:
                if group["train_mode"] != mode and parameter in self.state:
                    parameter.lerp_(self.state[parameter]["z"], weight)
            group["train_mode"] = mode

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"]
            group["k"] += 1
            for parameter in group["params"]:
                z = self.state[parameter].setdefault("z", parameter.clone())
                parameter.lerp_(z, 1 / group["k"]).sub_(
                    parameter.grad, alpha=group["lr"] * (1 - group["b"] * (1 - 1 / group["k"]))
                )
                z.sub_(parameter.grad, alpha=group["lr"])


def test_merge_says_that_a_schedule_free_optimizer_is_in_training_mode():
    net, optimizer = trained(Averaged)
    planted = plant(net, trace(net, X)["0"], 4, "kaiming")
    blocks = Averaged(planted_parameters(planted))
    train(planted, blocks, 3)
    with pytest.warns(UserWarning, match=r"plantops.merge: Averaged is in training mode.*Call optimizer.eval\(\)"):
        merged = merge(planted)
    start = merged[0].weight.detach()[6:].clone()
    carry_state(optimizer, planted, merged, blocks)
    z = optimizer.state[merged[0].weight]["z"][6:]
    assert torch.equal(z, blocks.state[planted[0].weight_out]["z"])
    optimizer.eval()
    torch.testing.assert_close(merged[0].weight.detach()[6:], start + (start - z) * (1 / 0.9 - 1))
    optimizer.train()
    train(merged, optimizer, 1)


def test_merge_in_evaluation_mode_stores_the_average_and_says_nothing(recwarn):
    net, optimizer = trained(Averaged)
    planted = plant(net, trace(net, X)["0"], 4, "kaiming")
    blocks = Averaged(planted_parameters(planted))
    train(planted, blocks, 3)
    blocks.eval()
    merged = merge(planted)
    assert not [one for one in recwarn if "training mode" in str(one.message)]
    with pytest.raises(ValueError, match="state is in training mode, planted_state in evaluation mode"):
        carry_state(optimizer, planted, merged, blocks)
    optimizer.eval()
    carry_state(optimizer, planted, merged, blocks)
    optimizer.train()
    train(merged, optimizer, 1)
