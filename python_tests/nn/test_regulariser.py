"""GroupSparsity: which layers it takes, what it adds to a loss, and that it owns nothing of the model."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from plantops.functional import group_sparsity
from plantops.graph import trace
from plantops.nn import GroupSparsity
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters

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
        ({"strength": -1.0}, "strength must be 0 or more, got -1.0"),
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


def growing():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).double()


def in_time():
    return nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=3), nn.ReLU(), nn.Conv1d(6, 2, 1))


MODELS = {"planes": (growing, (2, 3, 8, 8)), "groups in time": (lambda: in_time().double(), (2, 3, 8))}
SETTINGS = [("hierarchical_squared_group_lasso", "feature"), ("group_lasso", "neuron"), (PENALTY, "neuron")]


def planted_of(kind, inplace=False):
    make, shape = MODELS[kind]
    model = make()
    site = trace(model, torch.zeros(shape, dtype=torch.float64))["0"]
    return plant(model, site, 2 * site.multiple, "kaiming", inplace=inplace)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("penalty", "groups"), SETTINGS)
def test_a_planted_model_has_the_term_of_the_merged_one_and_its_blocks_the_gradient(kind, penalty, groups):
    planted = planted_of(kind)
    merged = merge(planted)
    own, whole = (GroupSparsity(model, penalty, groups, 0.1, 0.4) for model in (planted, merged))
    assert own.layer_names == whole.layer_names
    torch.testing.assert_close(own(), whole(), rtol=1e-12, atol=0)
    own().backward()
    blocks = planted_parameters(planted)
    slopes = [None if block.grad is None else block.grad.clone() for block in blocks]
    assert [slope is not None for slope in slopes] == [block.dim() > 1 for block in blocks]
    for block in blocks:  # along each entry: how the merged model's term changes
        if block.dim() == 1:
            continue
        at, step = (0,) * block.dim(), 1e-6
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                block[at] += sign * step
                values.append(GroupSparsity(merge(planted), penalty, groups, 0.1, 0.4)())
                block[at] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(slope, block.grad[at], rtol=1e-5, atol=1e-7)
        block.grad = None
    own.add_gradient()
    for block, slope in zip(blocks, slopes, strict=True):
        if slope is not None:
            torch.testing.assert_close(block.grad, slope, rtol=1e-12, atol=1e-15)
    assert all(parameter.grad is None for parameter in planted.parameters() if not parameter.requires_grad)


def test_follows_layers_that_are_replaced():
    model = growing()
    regulariser = GroupSparsity(model, "group_lasso", "neuron")
    plant(model, trace(model, torch.zeros(2, 3, 8, 8, dtype=torch.float64))["0"], 2, "kaiming", inplace=True)
    assert torch.equal(regulariser(), GroupSparsity(model, "group_lasso", "neuron")())
    merge(model, inplace=True)
    assert torch.equal(regulariser(), GroupSparsity(model, "group_lasso", "neuron")())
    assert regulariser.weights()[0] is model[0].weight
    model[2] = nn.Identity()
    with pytest.raises(RuntimeError, match="made for a convolution 2, the model now has a Identity there"):
        regulariser()


@pytest.mark.parametrize("by", ["plant", "merge"])
def test_a_term_over_the_model_before_a_copy_says_so_once(by, recwarn):
    model = growing()
    plan = trace(model, torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    if by == "merge":
        model = plant(model, plan["0"], 2)
    regulariser = GroupSparsity(model, "l1")
    regulariser()
    for _ in range(2):
        copied = merge(model) if by == "merge" else plant(model, plan["0"], 2)
        with pytest.warns(UserWarning, match=f"from before plantops.{by}, which gave a copy"):
            regulariser()
    recwarn.clear()
    regulariser()
    GroupSparsity(model, "l1")()
    GroupSparsity(copied, "l1")()
    assert not recwarn


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("averages", ["parameters", "buffers"])
def test_an_average_of_the_model_before_is_not_paired_with_other_parameters(inplace, averages):
    model = growing()
    average = AveragedModel(model, use_buffers=averages == "buffers")
    average.update_parameters(model)
    before = [parameter.clone() for parameter in average.parameters()]
    site = trace(model, torch.zeros(2, 3, 8, 8, dtype=torch.float64))["0"]
    planted = plant(model, site, 2, inplace=inplace)
    with pytest.raises(RuntimeError, match=r"AveragedModel holds .* where the model has .* before it was"):
        average.update_parameters(planted)
    assert all(map(torch.equal, average.parameters(), before))
    AveragedModel(planted).update_parameters(planted)
    merged = merge(planted)
    AveragedModel(merged).update_parameters(merged)
