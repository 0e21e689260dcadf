"""Several sites planted at once: the same promises as for one, also where sites share layers and concatenations."""

import copy
import pickle

import pytest
import torch
from torch import nn

from plantops.graph import trace
from plantops.planting.arrange import _Arranged
from plantops.planting.carry import carry_state
from plantops.planting.check import check_function_preserving
from plantops.planting.gradmax import GradMax
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters, trunk_hash, trunk_state
from python_tests.planting.networks import seeded
from python_tests.planting.structures import STRUCTURES, network

X = torch.randn(4, 2, 8, 8, generator=seeded(3), dtype=torch.float64)
SEVERAL = [name for name in STRUCTURES if len(STRUCTURES[name][3]) > 1]
IN_GROUPS = {"grouped in blocks"}  # no site of these starts as a copy


def planned(net):
    plan = trace(net, X)
    return plan, {site.name: (2 + 2 * (i % 2)) * site.multiple for i, site in enumerate(plan.values())}


@pytest.mark.parametrize(
    ("name", "init"),
    [(name, init) for name in SEVERAL for init in ("zero_in", "kaiming", "copy", "copy_pairs")
     if "copy" not in init or name not in IN_GROUPS],
)  # fmt: skip
def test_promises(name, init):
    net = network(name).train()
    plan, channels = planned(net)
    sites = [site for site in plan.values()
             if init in ("zero_in", "kaiming") or (site.multiple == 1 and not site.outputs)]  # fmt: skip
    channels = {site.name: min(channels[site.name], site.width) if init == "copy" else channels[site.name]
                for site in sites}  # fmt: skip
    planted = plant(net, sites, channels, init, generator=seeded())
    if init != "kaiming":
        check_function_preserving(net, planted, X, tolerance=1e-12)
    if init == "copy_pairs":  # every site fills its own part of the blocks that it shares with others
        layers = {reader.name: planted.get_submodule(reader.name) for site in sites for reader in site.consumers}
        assert all(bool(layer.weight_in.all()) for layer in layers.values())
    before = trunk_hash(planted)
    blocks = [p.detach().clone() for p in planted_parameters(planted)]
    optimizer = torch.optim.AdamW(planted_parameters(planted), 1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        planted(X).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(blocks, planted_parameters(planted), strict=True))
    assert trunk_hash(planted) == before == trunk_hash(net)
    merged = merge(planted)
    check_function_preserving(planted, merged, X, tolerance=1e-12)
    assert trunk_hash(merged, sites, channels) == before
    assert list(merged.state_dict()) == list(net.state_dict())
    assert [type(module) for module in merged.modules()] == [type(module) for module in net.modules()]
    again = trace(merged, X)
    assert {n: again[n].width for n in channels} == {n: plan[n].width + channels[n] for n in channels}


@pytest.mark.parametrize(
    "name",
    ["residual", "dense", "cat with the input", "depthwise in the middle", "transposed", "gated in groups",
     "cross stage", "pixel shuffle", "gated, transposed", "shuffled and split",
     "selective kernels", "read in several places"],
)  # fmt: skip
def test_gradients_are_those_of_the_grown_network(name):
    """Against the merged network, all of whose parameters train: every planted block gets the gradient of its slice,
    found by merging gradients as carry_state merges momentum."""
    net = network(name)
    plan, channels = planned(net)
    planted = plant(net, plan, channels, "kaiming", generator=seeded(), input_grad="planted").eval()
    merged = copy.deepcopy(merge(planted)).eval()
    for model in (planted, merged):
        model(X).square().sum().backward()
    optimizer = torch.optim.SGD(planted_parameters(planted), 1.0, momentum=0.9)
    optimizer.step()  # the first momentum buffer is the gradient
    grown = merge(planted)
    carry_state(optimizer, planted, grown)
    gradients = {n: p.grad for n, p in merged.named_parameters()}
    for key, parameter in grown.named_parameters():
        state = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if state is not None:
            planted_part = state != 0
            assert planted_part.any()
            torch.testing.assert_close(state[planted_part], gradients[key][planted_part])


def test_new_filters_read_the_new_channels_of_other_sites():
    net = network("dense")
    plan, _ = planned(net)
    planted = plant(net, [plan["c0"], plan["c1"]], {"c1": 1, "c0": 2}, generator=seeded())
    assert planted.c1.weight_in.shape[:2] == (3, 2)
    assert planted.c1.weight_out.shape[:2] == (1, 6)
    assert planted.n2.planted_features == 3
    assert planted.fc.weight_in.shape == (3, 3)
    # n2, c2 and fc read both, c0's channels in the middle; n1 and c1 read one site.
    assert {n for n, m in planted.named_modules() if isinstance(m, _Arranged)} == {"n2", "c2", "fc"}
    torch.testing.assert_close(trunk_state(planted)["fc.weight"], net.fc.weight)
    with torch.no_grad():
        planted.fc.weight_in[:] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    merged = merge(planted)
    assert merged.fc.weight[0, 4:6].tolist() == [1.0, 2.0]
    assert merged.fc.weight[0, 9:10].tolist() == [3.0]
    assert torch.equal(merged.fc.weight[:, [0, 1, 2, 3, 6, 7, 8, 10, 11]], net.fc.weight)


def test_arranged_layers_are_copied_and_pickled():
    net = network("dense")
    plan, channels = planned(net)
    planted = plant(net, plan, channels, "kaiming", generator=seeded())
    again = copy.deepcopy(planted)
    torch.testing.assert_close(again(X), planted(X))
    layer = pickle.loads(pickle.dumps(planted.c2))
    assert isinstance(layer, _Arranged)
    x = torch.randn(1, layer.in_channels, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), planted.c2(x))


def test_compiles_in_one_graph():
    net = network("dense").eval()
    plan, channels = planned(net)
    planted = plant(net, plan, channels, "kaiming", generator=seeded())
    compiled = torch.compile(planted, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), planted(X))
    assert nn.Conv2d not in {type(m) for m in planted.modules()}


def test_mistakes_are_named():
    net = network("residual")
    plan = trace(net, X)
    with pytest.raises(ValueError, match=r"different sites, got c1, c1"):
        plant(net, [plan["c1"], plan["c1"]], 2)
    with pytest.raises(ValueError, match="got none"):
        plant(net, [], 2)
    with pytest.raises(ValueError, match=r"channels must name each site once \(c0, c1\), got c1"):
        plant(net, plan, {"c1": 2})
    with pytest.raises(TypeError, match="channels must be an integer, got float"):
        plant(net, plan, {"c0": 2, "c1": 2.0})
    with pytest.raises(TypeError, match=r"site must be a Site, .* got str"):
        plant(net, "c1", 2)
    with pytest.raises(ValueError, match="one site at a time, got 2 sites"):
        plant(net, plan, 2, GradMax(X, lambda y: y.sum()))
