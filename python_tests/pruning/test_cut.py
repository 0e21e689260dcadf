"""Removed for real is what switched off computes, in every structure, and optimizers follow."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from plantops.graph import Plan, Site, trace
from plantops.planting.check import check_function_preserving
from plantops.pruning import remove_channels
from python_tests.planting.networks import seeded
from python_tests.planting.structures import STRUCTURES, network

X = torch.randn(4, 2, 8, 8, generator=seeded(3), dtype=torch.float64)


def masked(model: nn.Module, site: Site, channels: list[int]) -> nn.Module:
    """A copy whose layers read 0 in place of the channels: their input slices are 0."""
    model = copy.deepcopy(model)
    for consumer in site.consumers:
        layer = model.get_submodule(consumer.name)
        weight = layer.weight.detach()
        columns = weight if isinstance(layer, _ConvTransposeNd) else weight.transpose(0, 1)
        for number in range(site.blocks()):
            if set(site.block(number)) & set(channels):
                columns[list(site.read_block(number, consumer))] = 0
    return model


@pytest.mark.parametrize("name", STRUCTURES)
def test_removed_is_what_switched_off_computes(name: str):
    net = network(name)
    plan = trace(net, X)
    everything, off = {}, net
    for site in plan.values():
        number = site.blocks()
        if number < 2:
            continue
        channels = site.block(number // 2)
        pruned = remove_channels(net, plan, {site.name: channels})
        check_function_preserving(masked(net, site, channels), pruned, X, tolerance=1e-12)
        assert trace(pruned, X)[site.name].width == site.width - len(channels)
        lost = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in pruned.parameters())
        assert lost > 0
        if not {*site.producers} & {consumer.name for consumer in site.consumers}:
            assert round(lost / len(channels)) == site.parameters_per_channel
        assert list(pruned.state_dict()) == list(net.state_dict())
        everything[site.name], off = channels, masked(off, site, channels)
    if everything:
        pruned = remove_channels(net, plan, everything)
        check_function_preserving(off, pruned, X, tolerance=1e-12)
        assert torch.equal(net(X), network(name)(X))  # the model itself is as it was


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("inplace", [True, False])
def test_optimizer_goes_on_with_the_rest(kind, inplace):
    """Filters that nothing reads: without them, everything else trains as it did, momentum included."""
    net = network("residual").train(False)
    plan = trace(net, X)
    site = plan["c0"]
    net = masked(net, site, [1])
    with torch.no_grad():
        for producer in ("c0", "c2"):
            net.get_submodule(producer).weight[1] = 0
            net.get_submodule(producer).bias[1] = 0
        for norm in ("n0", "n2"):
            net.get_submodule(norm).weight[1] = 0
            net.get_submodule(norm).bias[1] = 0
    options = {"lr": 1e-2, "weight_decay": 0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {})}
    optimizer = kind(net.parameters(), **options)

    def step(model, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()

    step(net, 3)
    whole = copy.deepcopy(net)
    reference = kind(whole.parameters(), **options)
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        reference.zero_grad()
        whole(X).square().mean().backward()
        reference.step()
    pruned = remove_channels(net, plan, {"c0": [1]}, optimizer=optimizer, inplace=inplace)
    assert (pruned is net) == inplace
    assert {id(p) for p in pruned.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}
    step(pruned, 3)
    expected = remove_channels(whole, plan, {"c0": [1]})
    for ours, theirs in zip(pruned.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_memory_format_hooks_modes_and_frozen_parameters_stay():
    net = network("residual").to(memory_format=torch.channels_last).train()
    net.c1.weight.requires_grad_(False)
    seen = []
    net.c1.register_forward_hook(lambda *_: seen.append(1))
    pruned = remove_channels(net, trace(net, X), {"c1": [0, 4], "c0": [2]})
    assert pruned.c1.weight.is_contiguous(memory_format=torch.channels_last)
    assert (pruned.c1.weight.requires_grad, pruned.c2.weight.requires_grad) == (False, True)
    pruned(X)
    assert (len(seen), pruned.training, pruned.n1.num_features) == (1, True, 3)
    assert str(pruned.c1).startswith("Conv2d(3, 3,")


def test_errors():
    net = network("grouped")
    plan = trace(net, X)
    for channels, text in (
        ([0], r"channels\['a'\] must be whole blocks of 2 neighbours, got \[0\]"),
        ([0, 0], r"must be different numbers from 0 to 5, got \[0, 0\]"),
        ([], r"must be different numbers from 0 to 5, got \[\]"),
        ([6, 7], "must be different numbers from 0 to 5"),
        (range(6), "must leave one of 6 at least, got all of them"),
    ):
        with pytest.raises(ValueError, match=text):
            remove_channels(net, plan, {"a": channels})
    gated = network("gated")
    with pytest.raises(ValueError, match=r"must be whole blocks of site.block\(number\), got \[0, 1\]"):
        remove_channels(gated, trace(gated, X), {"a": [0, 1]})
    with pytest.raises(KeyError, match="no site 'z'"):
        remove_channels(net, plan, {"z": [0]})
    narrower = remove_channels(net, plan, {"a": [0, 1]})
    with pytest.raises(ValueError, match="plan is of another model: a must have 6 outputs, got 4"):
        remove_channels(narrower, plan, {"a": [0, 1]})
    with pytest.raises(ValueError, match="plan is of another model: c0 needs a layer c0 of the kind traced"):
        remove_channels(net, Plan([trace(network("residual"), X)["c0"]]), {"c0": [0]})
    with pytest.raises(ValueError, match="optimizer holds no parameter of model"):
        remove_channels(net, plan, {"a": [0, 1]}, optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    optimizer = torch.optim.SGD(net.parameters())
    remove_channels(net, plan, {"a": [0, 1]}, inplace=True)
    net(X).sum().backward()
    with pytest.raises(RuntimeError, match=r"optimizer holds a.weight, which plantops.prune\(..., inplace=True\)"):
        optimizer.step()
