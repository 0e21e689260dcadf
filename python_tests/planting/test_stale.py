"""An optimizer from before plant, merge or prune raises at its next step, however the loop is written."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn

from plantops import merge, plant
from plantops.graph import trace
from plantops.planting.trunk import planted_parameters
from plantops.pruning import remove_channels
from plantops.train import stale
from python_tests.planting.networks import seeded
from python_tests.planting.structures import network

X = torch.randn(4, 2, 8, 8, generator=seeded(3), dtype=torch.float64)


def loss(model):
    return model(X).square().mean()


def planted(model, inplace):
    return plant(model, trace(model, X)["c1"], 3, "kaiming", inplace=inplace)


def pruned(model, inplace):
    return remove_channels(model, trace(model, X), {"c1": [0]}, inplace=inplace)


def merged(model, inplace):
    return merge(model, inplace=inplace)


def plain():
    net = network("residual").train()
    return net, list(net.parameters())


def with_blocks():
    net = planted(network("residual").train(), False)
    return net, planted_parameters(net)


CHANGES = {"plant": (plain, planted), "prune": (plain, pruned), "merge": (with_blocks, merged)}


def optimizer_zero_grad(model, optimizer):
    optimizer.zero_grad()
    loss(model).backward()
    optimizer.step()


def model_zero_grad(model, optimizer):
    model.zero_grad()
    loss(model).backward()
    optimizer.step()


def zeros_stay(model, optimizer):
    optimizer.zero_grad(set_to_none=False)
    loss(model).backward()
    optimizer.step()


def no_zero_grad(model, optimizer):
    loss(model).backward()
    optimizer.step()


def clipped(model, optimizer):
    model.zero_grad()
    loss(model).backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1e-3)
    optimizer.step()


def scaled(model, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer.zero_grad()
    scaler.scale(loss(model)).backward()
    scaler.step(optimizer)


def scaled_and_unscaled(model, optimizer):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    model.zero_grad()
    scaler.scale(loss(model)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)


def closure_is_none(model, optimizer):
    optimizer.zero_grad()
    loss(model).backward()
    optimizer.step(None)


def closure_named_none(model, optimizer):
    optimizer.zero_grad()
    loss(model).backward()
    optimizer.step(closure=None)


def with_closure(model, optimizer):
    def closure():
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(closure)


def with_named_closure(model, optimizer):
    def closure():
        model.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(closure=closure)


class Wrapper(torch.optim.Optimizer):
    """As accelerate wraps: an optimizer without parameters of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        return self.optimizer.step(closure)


def wrapped(model, optimizer):
    optimizer.zero_grad()
    loss(model).backward()
    Wrapper(optimizer).step()


def scheduled(model, optimizer):
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    model.zero_grad()
    loss(model).backward()
    optimizer.step()
    schedule.step()


LOOPS = [
    optimizer_zero_grad, model_zero_grad, zeros_stay, no_zero_grad, clipped, scaled, scaled_and_unscaled,
    closure_is_none, closure_named_none, with_closure, with_named_closure, wrapped, scheduled,
]  # fmt: skip


def train_once(model, parameters, make=torch.optim.SGD):
    optimizer = make(parameters, 0.1)
    with_closure(model, optimizer)
    return optimizer


@pytest.mark.parametrize("stepped", [True, False])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("change", CHANGES)
def test_every_loop(change, loop, inplace, stepped):
    start, act = CHANGES[change]
    model, parameters = start()
    optimizer = train_once(model, parameters) if stepped else torch.optim.SGD(parameters, 0.1, momentum=0.9)
    model = act(model, inplace)
    by = f"plantops.{change}" + (", which has had no gradient since", r"\(\.\.\., inplace=True\) has replaced")[inplace]
    with pytest.raises(RuntimeError, match=f"optimizer holds .*{by}.*carry_state"):
        loop(model, optimizer)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_lbfgs(change, inplace):
    start, act = CHANGES[change]
    model, parameters = start()
    optimizer = train_once(model, parameters, torch.optim.LBFGS)
    with pytest.raises(RuntimeError, match=f"plantops.{change}.*carry_state"):
        with_closure(act(model, inplace), optimizer)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("change", CHANGES)
def test_the_model_that_was_copied_trains_on(change, loop):
    start, act = CHANGES[change]
    model, parameters = start()
    optimizer = train_once(model, parameters)
    act(model, False)
    before = [parameter.detach().clone() for parameter in parameters]
    loop(model, optimizer)
    assert any(not torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in parameters)  # watched no longer
    loop(model, optimizer)


def test_gradients_that_somebody_sets_are_gradients():
    model, parameters = plain()
    optimizer = train_once(model, parameters)
    planted(model, False)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss(model), parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def test_a_replaced_layer_that_is_used_elsewhere_trains_on():
    net = network("residual").train()
    layer, optimizer = net.c1, torch.optim.SGD(net.c1.parameters(), 0.1)
    planted(net, True)
    layer(torch.ones(1, 4, 5, 5, dtype=torch.float64)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("inplace", [False, True])
def test_an_optimizer_that_was_given_the_blocks_trains_them_until_they_are_merged(inplace):
    net, parameters = plain()
    optimizer = train_once(net, parameters)
    model = planted(net, inplace)
    optimizer.add_param_group({"params": planted_parameters(model)})
    for loop in LOOPS[:4]:
        loop(model, optimizer)
    model = merge(model, inplace)
    with pytest.raises(RuntimeError, match="optimizer holds"):
        model_zero_grad(model, optimizer)


def test_other_parameters_beside_those_left_behind_do_not_hide_them():
    """A projection that is distilled with the network trains on; the network would not."""
    net, parameters = plain()
    projection = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([*parameters, projection], 0.1)
    model = planted(net, False)
    (loss(model) * projection).sum().backward()
    with pytest.raises(RuntimeError, match=r"before plantops\.plant"):
        optimizer.step()


def test_frozen_parameters_of_a_copied_model_are_nobodys_business():
    """A head is trained on features of a network that was copied and planted elsewhere."""
    net, parameters = plain()
    head = nn.Parameter(torch.ones(1, dtype=torch.float64))
    for parameter in parameters:
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD([*parameters, head], 0.1)
    planted(net, False)
    (loss(net) * head).sum().backward()
    optimizer.step()


def test_optimizers_of_other_models_are_left_alone():
    planted(network("residual").train(), False)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    optimizer.step()  # not even a gradient


def test_the_model_that_was_copied_is_stored_and_copied_as_before():
    net, parameters = plain()
    planted(net, False)
    net.way = None
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not any(parameter._post_accumulate_grad_hooks for parameter in twin.parameters())
        torch.optim.SGD(twin.parameters(), 0.1).step()
    assert len(parameters) == len(list(net.parameters()))


def test_nothing_is_kept_of_models_that_are_gone():
    gc.collect()
    left, heirs = set(stale._LEFT), set(stale._HEIRS)
    net, parameters = plain()
    model = planted(net, False)
    assert len(set(stale._LEFT) - left) == len(parameters)
    del net, parameters, model
    gc.collect()
    assert not set(stale._LEFT) - left
    assert not set(stale._HEIRS) - heirs
