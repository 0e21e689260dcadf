"""The paper's networks: published sizes, shapes, traceability, seeds."""

import itertools

import pytest
import torch
from torch import fx, nn

from plantops.models import PlantingNet, count_macs, count_parameters, planting_net

PUBLISHED = {
    8: {"cifar10": 20_362, "cifar100": 31_972, "stl10": 40_842},
    16: {"cifar10": 43_914, "cifar100": 55_524, "stl10": 84_874},
    32: {"cifar10": 104_842, "cifar100": 116_452, "stl10": 186_762},
    64: {"cifar10": 281_994, "cifar100": 293_604, "stl10": 445_834},
    128: {"cifar10": 857_482, "cifar100": 869_092, "stl10": 1_185_162},
}


@pytest.mark.parametrize("width", PUBLISHED)
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_published_parameter_counts(name, width):
    assert count_parameters(planting_net(name, width)) == PUBLISHED[width][name]


def test_widths_of_their_own_follow_the_formula():
    c = (3, 5, 2, 7, 4)
    net = planting_net("cifar10", c)
    expected = 28 * c[0] + sum(9 * a * b + b for a, b in itertools.pairwise(c))
    expected += 16 * c[4] * 128 + 128 + 128 * 10 + 10
    assert count_parameters(net) == expected
    assert [net.get_submodule(f"conv{i}").out_channels for i in range(1, 6)] == list(c)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("size", "pools", "side"), [(32, (1, 2, 5), 4), (96, (1, 2, 3, 5), 6), (8, (1, 2, 5), 1)])
def test_pools_follow_the_image_size(size, pools, side):
    net = PlantingNet([2] * 5, 4, image_size=size)
    assert net.pool_after == pools
    assert net.fc1.in_features == 2 * side * side
    assert net(torch.zeros(1, 3, size, size)).shape == (1, 4)


def test_forward_is_the_written_out_network():
    net = PlantingNet([2, 3, 4, 3, 2], 5, in_channels=1, image_size=8, fc_width=6, batch_norm=True).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5)
    net.eval()
    x = images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    functional = nn.functional
    for layer in range(1, 6):
        conv, norm = getattr(net, f"conv{layer}"), getattr(net, f"bn{layer}")
        x = functional.conv2d(x, conv.weight, conv.bias, padding=1)
        x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        x = x.clamp(min=0)
        if layer in (1, 2, 5):
            x = functional.max_pool2d(x, 2)
    hidden = (x.flatten(1) @ net.fc1.weight.T + net.fc1.bias).clamp(min=0)
    torch.testing.assert_close(net(images), hidden @ net.fc2.weight.T + net.fc2.bias)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_traceable_by_fx_with_every_layer_a_module_call(batch_norm):
    net = planting_net("cifar10", 2, batch_norm=batch_norm).eval()
    traced = fx.symbolic_trace(net)
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    names = {f"conv{i}" for i in range(1, 6)} | {"relu", "pool", "fc1", "fc2"}
    assert called == names | ({f"bn{i}" for i in range(1, 6)} if batch_norm else set())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(traced(images), net(images))


def test_a_generator_decides_the_weights_and_nothing_else_does():
    state = torch.get_rng_state()
    first = planting_net("cifar10", 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again = planting_net("cifar10", 4, generator=torch.Generator().manual_seed(3))
    other = planting_net("cifar10", 4, generator=torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    bound = (4 * 9) ** -0.5
    assert 0.9 * bound < first.conv2.weight.abs().max() <= bound


def test_a_generator_sets_batch_norms_to_their_start():
    net = planting_net("cifar10", 4, batch_norm=True, generator=torch.Generator().manual_seed(3))
    assert torch.equal(net.bn3.weight, torch.ones(4))
    assert torch.equal(net.bn3.running_var, torch.ones(4))
    assert torch.equal(net.bn3.running_mean, torch.zeros(4))
    assert net.bn3.num_batches_tracked == 0


def test_count_macs_by_hand_and_without_side_effects():
    net = planting_net("cifar10", (2, 3, 4, 5, 6), batch_norm=True).train()
    expected = 1024 * 27 * 2 + 256 * 9 * 2 * 3 + 64 * 9 * (3 * 4 + 4 * 5 + 5 * 6) + 16 * 6 * 128 + 128 * 10
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert count_macs(net, (3, 32, 32)) == expected
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_count_macs_of_groups_strides_and_sequences():
    net = nn.Sequential(nn.Conv2d(4, 6, (3, 1), stride=2, groups=2), nn.Flatten(2), nn.Linear(8, 3))
    assert count_macs(net, (4, 9, 4)) == 4 * 2 * 6 * (2 * 3) + 6 * 8 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": [8, 8]}, r"widths must be five numbers.*\[8, 8\]"),
        ({"widths": [8, 8, 0, 8, 8]}, "widths must be five numbers"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"pool_after": (0, 2)}, r"pool_after must name layers from 1 to 5, got \[0, 2\]"),
        ({"image_size": 4}, "image_size 4 is too small for 3 2x2 pools"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PlantingNet(**{"widths": [8] * 5, "num_classes": 10, **arguments})


def test_unknown_data_set():
    with pytest.raises(ValueError, match="cifar10, cifar100, stl10, got 'cifar'"):
        planting_net("cifar", 8)


def test_compiles_in_one_graph():
    net = planting_net("cifar10", 2, batch_norm=True)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
