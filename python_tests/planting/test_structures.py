"""Every structure: the sites are those that must be, and growing them keeps all promises, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plantops.graph import trace
from plantops.planting.check import check_function_preserving
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters, trunk_hash
from plantops.planting.verify import verify
from python_tests.planting.networks import seeded
from python_tests.planting.structures import STRUCTURES, network

X = torch.randn(4, 2, 8, 8, generator=seeded(3), dtype=torch.float64)


@pytest.mark.parametrize("name", STRUCTURES)
def test_sites_and_promises(name):
    net = network(name)
    plan = trace(net, X)
    expected = STRUCTURES[name][3]
    assert {site.name: site.producers for site in plan.values()} == expected, str(plan)
    assert set(plan.refusals) & {p for producers in expected.values() for p in producers} == set()
    assert verify(net, plan, X) == dict.fromkeys(expected)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("init", ["kaiming", "copy", "copy_pairs"])
def test_initialisers_costs_and_merge(name, init):
    net = network(name).train()
    for site in trace(net, X).values():
        if init != "kaiming" and (site.multiple > 1 or site.outputs):
            with pytest.raises(ValueError, match=f"come in (parts or units|groups of {site.multiple})"):
                plant(net, site, site.multiple, init)
            continue
        channels = 2 * site.multiple
        planted = plant(net, site, channels, init, generator=seeded())
        if init != "kaiming":
            check_function_preserving(net, planted, X, tolerance=1e-12)
        own = {*site.producers} & {consumer.name for consumer in site.consumers}
        if not own:
            added = sum(parameter.numel() for parameter in planted_parameters(planted))
            assert round(added / channels) == site.parameters_per_channel
        before = trunk_hash(planted)
        optimizer = torch.optim.AdamW(planted_parameters(planted), 1e-2, weight_decay=0.1)
        for _ in range(2):
            planted(X).square().mean().backward()
            optimizer.step()
        assert trunk_hash(planted) == before == trunk_hash(net)
        merged = merge(planted)
        check_function_preserving(planted, merged, X, tolerance=1e-12)
        assert trunk_hash(merged, site, channels) == before
        assert list(merged.state_dict()) == list(net.state_dict())
        assert [type(module) for module in merged.modules()] == [type(module) for module in net.modules()]
        again = trace(merged, X)[site.name]
        assert again.width == site.width + channels
        assert again.parameters_per_channel >= site.parameters_per_channel


@pytest.mark.parametrize("name", ["residual", "gate", "dense", "depthwise in the middle", "reads itself"])
def test_gradients_are_those_of_the_grown_network(name):
    """Against the merged network, all of whose parameters train: the planted blocks get the same slices."""
    net = network(name)
    for site in trace(net, X).values():
        planted = plant(net, site, 2, "kaiming", generator=seeded(), input_grad="planted").eval()
        merged = copy.deepcopy(merge(planted)).eval()
        for model in (planted, merged):
            model(X).square().sum().backward()
        ours = sum(float(p.grad.square().sum()) for p in planted_parameters(planted))
        theirs = sum(float(p.grad.square().sum()) for p in merged.parameters())
        start = site.width
        name = site.producers[0]
        torch.testing.assert_close(
            merged.get_submodule(name).weight.grad[start:], planted.get_submodule(name).weight_out.grad
        )
        for consumer in site.consumers:
            reader, first = planted.get_submodule(consumer.name), site.planted_start(consumer)
            if reader.weight_in is not None:
                rows = reader.weight_in.shape[0]
                expected = merged.get_submodule(consumer.name).weight.grad[:rows, first : first + reader.planted_in]
                torch.testing.assert_close(expected, reader.weight_in.grad)
        assert 0 < ours < theirs


def test_channels_come_in_whole_groups():
    net = network("grouped")
    site = trace(net, X)["a"]
    assert site.multiple == 2
    with pytest.raises(ValueError, match="channels must be a multiple of 2 at a, got 3"):
        plant(net, site, 3)


def test_verify_says_what_is_wrong():
    net = network("residual")
    site = trace(net, X)["c1"]
    wrong = copy.copy(site)
    object.__setattr__(wrong, "consumers", ())
    found = verify(net, [wrong, site], X)
    assert found["c1"] is None
    assert "Error" in (verify(net, wrong, X)["c1"] or "")


class Dropping(nn.Module):
    """A forward, and a block in it, that drop values by ``self.training``."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = x + self.norm(self.conv(x)) * (2.0 if self.training else 1.0)
            return F.dropout(x, 0.5, self.training)

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(2, 4, 3), self.Block(), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.head(F.dropout(self.block(self.stem(x)), 0.3, training=self.training))


def test_functional_dropout_and_modes_of_submodules_are_held():
    net = Dropping().double().train()
    plan = trace(net, X)
    assert set(plan["stem"].pinned) == {"", "block"}
    assert plan["stem"].producers == ("stem", "block.conv")
    assert verify(net, plan, X) == {"stem": None}
    planted = plant(net, plan["stem"], 2, generator=seeded()).train()
    expected = net.eval()(X)
    torch.testing.assert_close(planted(X), expected)
    merged = merge(copy.deepcopy(planted))
    assert type(merged) is Dropping
    assert all(module.training for module in merged.modules())
    assert not torch.equal(merged(X), merged(X))
