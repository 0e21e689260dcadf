"""plantops.trace: offered sites are grown once, and sites can be named by hand."""

import copy

import pytest
import torch
from torch import nn

import plantops
from plantops import Group
from plantops.graph import rules
from plantops.graph import trace as trace_graph
from plantops.planting.verify import verify
from python_tests.planting.networks import seeded
from python_tests.planting.structures import STRUCTURES, network

X = torch.randn(2, 2, 8, 8, generator=seeded(3), dtype=torch.float64)


@pytest.mark.parametrize("name", STRUCTURES)
def test_everything_offered_is_confirmed(name):
    net = network(name).train()
    state = torch.get_rng_state()
    plan = plantops.trace(net, X)
    assert plan == trace_graph(net, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert plantops.trace(net, torch.zeros_like(X)) == plan


class Reversed(nn.Module):
    """Not pointwise: new channels would come first."""

    def forward(self, x):
        return x.flip(1)


class Chain(nn.Sequential):
    def __init__(self, between):
        super().__init__()
        self.a, self.between, self.b = nn.Conv2d(2, 4, 3), between, nn.Conv2d(4, 5, 1)
        self.act, self.c = nn.ReLU(), nn.Conv2d(5, 3, 1)


def test_a_site_that_fails_is_refused_and_the_others_stay(monkeypatch):
    monkeypatch.setattr(rules, "POINTWISE_MODULES", rules.POINTWISE_MODULES | {Reversed})
    monkeypatch.setattr("plantops.graph.capture.Tracer.is_leaf_module", lambda self, m, name: True)
    net = Chain(Reversed()).double()
    assert set(trace_graph(net, X)) == {"a", "b"} == set(plantops.trace(net, X, verify=False))
    plan = plantops.trace(net, X)
    assert set(plan) == {"b"}
    assert plan.refusals["a"].startswith(
        "verification failed: PlantingError: planting changes the outputs by more than"
    )


def test_the_model_is_left_alone():
    net = network("residual")
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    net.c1.register_forward_pre_hook(lambda *_: calls.append(2))
    before = copy.deepcopy(net.state_dict())
    plantops.trace(net, X, verify=False)
    assert not calls
    plantops.trace(net, X)
    assert calls == [2, 1] * 4  # as it is, planted, with random blocks, merged
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert len(net._forward_hooks) == len(net.c1._forward_pre_hooks) == 1


def per_channel(module, inputs, output):
    return output * torch.ones(4, 1, 1, dtype=output.dtype)


def over_channels(module, inputs):
    return (inputs[0] / inputs[0].norm(dim=1, keepdim=True),)


@pytest.mark.parametrize(
    ("register", "where", "hook", "reason"),
    [
        ("register_forward_hook", "a", per_channel, "RuntimeError: The size of tensor a"),
        ("register_forward_pre_hook", "b", over_channels, "PlantingError: planting changes the outputs"),
        ("register_forward_pre_hook", "", lambda module, x: (x[0] / 255,), None),
        ("register_forward_hook", "a", lambda module, x, y: None, None),
    ],
    ids=["one for each channel", "over the channels", "of the model", "that looks"],
)
def test_verification_calls_the_hooks(register, where, hook, reason):
    net = Chain(nn.ReLU()).double()
    getattr(net.get_submodule(where), register)(hook)
    plan = plantops.trace(net, X)
    assert list(plan) == (["b"] if reason else ["a", "b"])
    assert plan.refusals.get("a", "").startswith(f"verification failed: {reason}" if reason else "")


def test_keywords_alone():
    class Named(Chain):
        def forward(self, *, image, scale=1.0):
            return super().forward(image * scale)

    net, keywords = Named(nn.ReLU()).double(), {"image": X, "scale": 2.0}
    plan = plantops.trace(net, example_kwargs=keywords)
    assert list(plan) == ["a", "b"]
    assert plan == plantops.trace(net, keywords) == trace_graph(net, example_kwargs=keywords)
    assert verify(net, plan, example_kwargs=keywords) == {"a": None, "b": None}
    for wrong in ({}, {"example_kwargs": {"scale": 2.0}}):
        with pytest.raises(ValueError, match=r"example_inputs must begin with a tensor .*, got no tensor"):
            plantops.trace(net, **wrong)


def test_random_forwards_and_meta_models():
    class Noisy(Chain):
        def forward(self, x):
            return super().forward(x) + torch.rand(1, dtype=torch.float64)

    assert set(plantops.trace(Noisy(nn.ReLU()).double(), X)) == {"a", "b"}
    with torch.device("meta"):
        net, x = Chain(nn.ReLU()), torch.empty(2, 2, 8, 8)
    assert set(plantops.trace(net, x)) == {"a", "b"}


class Spectrum(nn.Module):
    """Every channel for itself, which the graph cannot know."""

    def forward(self, x):
        return torch.fft.fft2(x).abs()


class Deciding(Chain):
    """A forward that looks at values: no graph."""

    def forward(self, x):
        y = self.between(self.a(x))
        return self.c(self.act(self.b(y if bool(y.sum() > -1e9) else -y)))


class TestGroups:
    def test_layers_that_cannot_be_followed(self):
        net = Chain(Spectrum()).double()
        assert "a" not in plantops.trace(net, X)
        plan = plantops.trace(net, X, groups=[Group(["a"], ["b"])])
        assert list(plan) == ["a", "b"]
        expected = plantops.trace(Chain(nn.ReLU()).double(), X)["a"]
        site = plan["a"]
        assert (site.producers, site.consumers, site.width) == (("a",), expected.consumers, 4)
        assert site.parameters_per_channel == expected.parameters_per_channel == 19 + 5
        assert site.macs_per_channel == expected.macs_per_channel == (18 + 5) * 36
        assert "a" not in plan.refusals
        assert verify(net, plan, X) == {"a": None, "b": None}

    def test_a_forward_without_a_graph(self):
        net = Deciding(nn.BatchNorm2d(4)).double()
        assert "cannot follow" in plantops.trace(net, X).refusals["a"]
        plan = plantops.trace(net, X, groups=[Group(["a"], ["b"], ["between"]), Group(["b"], ["c"])])
        assert {s.name: (s.norms, s.channelwise[0].kind if s.channelwise else None) for s in plan.values()} == {
            "a": (("between",), "norm"), "b": ((), None)
        }  # fmt: skip
        assert set(plan.refusals) == {"c"}
        assert plan["a"].parameters_per_channel == 19 + 2 + 5
        assert verify(net, plan, X) == {"a": None, "b": None}

    def test_places_and_multiples(self):
        net = network("grouped in blocks")
        plan = plantops.trace(net, X)
        by_hand = plantops.trace(net, X, groups=[Group(["b"], [("fc", 4)], [("c", 4)])])
        assert by_hand["b"].channelwise == plan["b"].channelwise
        assert by_hand["b"].consumers == plan["b"].consumers
        assert by_hand["b"].multiple == plan["b"].multiple == 2
        flat = network("cat flat")
        site = plantops.trace(flat, X, groups=[Group(["b"], [("fc", 192, 64)])])["b"]
        assert site.consumers == plantops.trace(flat, X)["b"].consumers

    @pytest.mark.parametrize(
        ("group", "message"),
        [
            (Group(["a"], ["c"]), "a cannot grow as described: RuntimeError"),
            (Group(["x"], ["b"]), "the model has no layer 'x'"),
            (Group("a", ["b"]), "producers and consumers must each be a sequence"),
            (Group(["a", "b"], ["c"]), r"equally wide, got a, b of \[4, 5\]"),
            (Group(["act"], ["b"]), "act is a ReLU"),
            (Group(["a"], ["b"], ["act"]), "act is a ReLU, which has no tensors"),
            (Group(["a"], [("b", 1)]), "b has 4 input features, too few for 4 channels of 1 from 1 on"),
            (Group(["b"], ["b"]), "b has 4 input features, too few for 5"),
        ],
    )
    def test_mistakes_are_named(self, group, message):
        with pytest.raises(ValueError, match=message):
            plantops.trace(Chain(nn.ReLU()).double(), X, groups=[group])

    def test_a_layer_in_two_groups(self):
        with pytest.raises(ValueError, match="a layer is a producer of two groups"):
            plantops.trace(Chain(nn.ReLU()).double(), X, groups=[Group(["a"], ["b"]), Group(["a"], ["b"])])
