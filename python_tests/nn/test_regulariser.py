"""GroupSparsity: which layers it takes, what it adds to a loss, and that it owns nothing of the model."""

import copy

import pytest
import torch
from torch import nn

from plantops.functional import group_sparsity
from plantops.nn import GroupSparsity

PENALTY = "hierarchical_squared_exclusive_sparsity"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.downsample = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Flatten(), nn.Linear(4, 2)).double()


def test_takes_convolutions_but_shortcuts_linear_layers_and_biases(model):
    regulariser = GroupSparsity(model, PENALTY)
    assert regulariser.layer_names == ("0.conv1", "0.conv2")
    assert [w.data_ptr() for w in regulariser.weights()] == [
        model[0].conv1.weight.data_ptr(),
        model[0].conv2.weight.data_ptr(),
    ]
    chosen = GroupSparsity(model, PENALTY, layers=["0.downsample.0"])
    assert chosen.weights()[0] is model[0].downsample[0].weight


@pytest.mark.parametrize("impl", ["reference", "aten", "auto"])
def test_add_gradient_is_what_backward_adds(model, impl):
    regulariser = GroupSparsity(model, PENALTY, impl=impl)
    first, second = regulariser.weights()
    loss = 3 * regulariser()
    slopes = torch.autograd.grad(loss, [first, second])
    first.grad = torch.ones_like(first)
    second.requires_grad_(False)
    value = regulariser.add_gradient(scale=lambda gradient: 3 * gradient)
    torch.testing.assert_close(3 * value, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(first.grad, 1 + slopes[0], rtol=1e-12, atol=0)
    assert second.grad is None


@pytest.mark.parametrize("groups", ["feature", "neuron"])
def test_is_strength_times_the_mixture(model, groups):
    weights = [model[0].conv1.weight, model[0].conv2.weight]
    loss = GroupSparsity(model, PENALTY, groups, strength=0.01, mix=0.3)()
    l1 = sum(w.abs().sum() for w in weights)
    expected = 0.3 * 0.01 * group_sparsity(weights, PENALTY, groups) + 0.7 * 0.01 * l1
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), rtol=1e-10, atol=0
    )


def test_the_published_settings_are_the_defaults(model):
    regulariser = GroupSparsity(model, PENALTY)
    assert (regulariser.groups, regulariser.strength, regulariser.mix) == ("feature", 1e-3, 0.5)


def test_owns_nothing_and_follows_the_model(model):
    regulariser = GroupSparsity(model, PENALTY)
    assert not list(regulariser.parameters())
    assert not regulariser.state_dict()
    before = regulariser()
    model.float()
    assert regulariser().dtype == torch.float32
    model[0].conv1.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    assert regulariser() < before


def test_works_through_a_training_step(model):
    regulariser = GroupSparsity(model, "l1", strength=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    others = {n: p.clone() for n, p in model.named_parameters() if n not in ("0.conv1.weight", "0.conv2.weight")}
    before = copy.deepcopy(model[0].conv1.weight)
    regulariser().backward()
    optimizer.step()
    torch.testing.assert_close(model[0].conv1.weight, before - 1e-3 * before.sign())
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others)


def test_sparsity_counts_small_weights(model):
    regulariser = GroupSparsity(model, PENALTY)
    with torch.no_grad():
        model[0].conv1.weight.zero_()
        model[0].conv2.weight.fill_(0.5)
    total = model[0].conv1.weight.numel() + model[0].conv2.weight.numel()
    assert regulariser.sparsity() == model[0].conv1.weight.numel() / total
    assert regulariser.sparsity(threshold=1.0) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": "l3"}, "penalty: expected one of .* got 'l3'"),
        ({"groups": "rows"}, "groups: expected one of .* got 'rows'"),
        ({"strength": -1.0}, "strength: .* got -1.0"),
        ({"mix": 1.5}, r"mix: expected a number in \[0, 1\], got 1.5"),
        ({"layers": ["2"]}, "layers: expected names of convolutions .*0.conv1.* got '2'"),
        ({"layers": []}, "at least one convolution"),
        ({"impl": "best"}, "impl: expected one of"),
    ],
)
def test_errors(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupSparsity(model, **{"penalty": PENALTY, **arguments})


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="at least one convolution to regularise, got none in Linear"):
        GroupSparsity(nn.Linear(2, 2), PENALTY)
