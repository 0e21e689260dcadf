"""Every initialiser by its definition, at chains with and without norms."""

import pytest
import torch
from torch import nn

from plantops.graph import trace
from plantops.planting.check import PlantingError, check_function_preserving
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters, trunk_hash
from python_tests.planting.networks import all_moved, copies, disturbed, images, paper_net, planned, seeded, train_steps

EPS = torch.finfo(torch.float64).eps


def chain(activation: nn.Module, norm: bool = False, bias: bool = True) -> nn.Sequential:
    torch_layers = [
        nn.Conv2d(2, 4, 3, bias=bias),
        *([nn.BatchNorm2d(4)] if norm else []),
        activation,
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 4),
    ]
    return disturbed(nn.Sequential(*torch_layers)).double()


def sites_of(net: nn.Module, dtype: torch.dtype = torch.float64):
    return trace(net, images(dtype=dtype))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("init", ["zero_in", "kaiming", "copy", "copy_pairs"])
@pytest.mark.parametrize("name", ["conv2", "conv5", "fc1"])
def test_what_keeps_the_function_and_what_does_not(name, init, batch_norm):
    net = paper_net(batch_norm)
    planted = plant(net, planned(net)[name], 2, init, generator=seeded(4))
    if init == "kaiming":
        with pytest.raises(PlantingError, match="outputs differ by"):
            check_function_preserving(net, planted, images())
    else:
        check_function_preserving(net, planted, images())
    assert trunk_hash(planted) == trunk_hash(net)


def test_kaiming_blocks_have_the_right_spread():
    net = nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 64, 3))

    planted = plant(net, trace(net, torch.zeros(1, 16, 8, 8))["0"], 200, "kaiming", generator=seeded())
    out_block, in_block = planted[0].weight_out.detach(), planted[2].weight_in.detach()
    for block, fan_in in ((out_block, 16 * 9), (in_block, (8 + 200) * 9)):
        assert block.std() * fan_in**0.5 == pytest.approx(2**0.5, rel=0.03)
        assert block.mean().abs() < 0.05 * block.std()
    assert torch.equal(
        plant(net, trace(net, torch.zeros(1, 16, 8, 8))["0"], 200, generator=seeded())[0].weight_out, out_block
    )


@pytest.mark.parametrize("init", ["copy", "copy_pairs"])
@pytest.mark.parametrize("norm", [False, True])
def test_copies_are_copies_of_different_channels(init, norm):
    net = chain(nn.ReLU(), norm)
    planted = plant(net, sites_of(net)["0"], 4, init, generator=seeded())
    conv, head = planted[0], planted[-1]
    found = [int((net[0].weight == row).flatten(1).all(1).nonzero()) for row in conv.weight_out]
    assert torch.equal(conv.bias_out, net[0].bias[found])
    blocks = head.weight_in.unflatten(1, (4, 9))
    if init == "copy":
        assert sorted(found) == [0, 1, 2, 3]
        assert not blocks.any()
    else:
        assert found[0] == found[1] != found[2] == found[3]
        old = net[-1].weight.unflatten(1, (4, 9))[:, found]
        assert torch.equal(blocks[:, 0::2], old[:, 0::2])
        assert torch.equal(blocks[:, 1::2], -old[:, 1::2])
    if norm:
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(planted[1], f"{key}_out"), getattr(net[1], key)[found])
    assert check_function_preserving(net, planted, images(dtype=torch.float64)) < 64 * EPS


def test_copy_of_a_norm_behind_flatten():
    net = disturbed(nn.Sequential(nn.Conv2d(2, 4, 6), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 4))).double()
    planted = plant(net, sites_of(net)["0"], 2, "copy", generator=seeded())
    found = [int((net[0].weight == row).flatten(1).all(1).nonzero()) for row in planted[0].weight_out]
    expected = net[2].running_mean.unflatten(0, (4, 9))[found].flatten()
    assert torch.equal(planted[2].running_mean_out, expected)
    check_function_preserving(net, planted, images(dtype=torch.float64))


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.1), nn.GELU(), nn.Tanh(), nn.Identity()])
@pytest.mark.parametrize("norm", [False, True])
def test_zero_out_keeps_the_function_and_can_train(activation, norm):
    net = chain(activation, norm)
    planted = plant(net, sites_of(net)["0"], 3, "zero_out", generator=seeded())
    assert check_function_preserving(net, planted, images(dtype=torch.float64)) <= 16 * EPS
    zeroed = planted[1] if norm else planted[0]
    assert not zeroed.weight_out.any()
    assert not zeroed.bias_out.any()
    assert planted[-1].weight_in.any()
    planted(images(dtype=torch.float64)).square().sum().backward()
    assert zeroed.weight_out.grad.abs().min() > 0


def test_zero_out_without_slope_is_refused():
    for net in (chain(nn.ReLU()), chain(nn.Hardshrink()), chain(nn.ReLU(), norm=True)):
        with pytest.raises(ValueError, match=r"init='zero_out' cannot start 0: .* slope 0 at 0"):
            plant(net, sites_of(net)["0"], 1, "zero_out")


def test_mistakes():
    net = paper_net()
    site = planned(net)["conv2"]
    with pytest.raises(ValueError, match=r"init must be one of zero_in, kaiming.* or a GradMax object, got 'ones'"):
        plant(net, site, 1, "ones")
    with pytest.raises(ValueError, match="starts at most 4 channels at conv2, one a copy, got 5"):
        plant(net, site, 5, "copy")
    for channels in (3, 10):
        with pytest.raises(ValueError, match=f"an even number up to 8 at conv2, got {channels}"):
            plant(net, site, channels, "copy_pairs")


@pytest.mark.parametrize("init", ["zero_in", "kaiming", "copy", "copy_pairs"])
def test_randomness_is_the_generators_alone(init):
    net = paper_net(batch_norm=True)
    site = planned(net)["conv4"]

    def blocks(seed):
        generator = None if seed is None else seeded(seed)
        return torch.cat(
            [p.detach().flatten() for p in planted_parameters(plant(net, site, 4, init, generator=generator))]
        )

    state = torch.get_rng_state()
    first = blocks(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(blocks(0), first)
    assert torch.equal(blocks(None), first)
    assert not torch.equal(blocks(1), first)


@pytest.mark.parametrize("init", ["zero_in", "kaiming", "copy"])
def test_every_block_moves_within_two_steps(init):
    net = paper_net(batch_norm=True)
    planted = plant(net, planned(net)["conv2"], 2, init, generator=seeded())
    before = copies(planted)
    train_steps(planted.train(), torch.optim.SGD(planted_parameters(planted), 0.1), 2)
    assert all_moved(before, planted)


class TestCheck:
    def test_is_the_largest_difference(self):
        class Shift(nn.Module):
            def __init__(self, by):
                super().__init__()
                self.by = by

            def forward(self, x):
                return {"a": x, "b": [x + self.by, x]}

        x = torch.ones(3)
        assert check_function_preserving(Shift(0.0), Shift(0.5), x, tolerance=0.5) == 0.5
        with pytest.raises(PlantingError, match=r"outputs differ by 0\.5, more than 0\.4"):
            check_function_preserving(Shift(0.0), Shift(0.5), x, tolerance=0.4)
        with pytest.raises(PlantingError, match=r"outputs differ by 0\.5, more than 3\.81e-06"):
            check_function_preserving(Shift(0.0), Shift(0.5), x)
        with pytest.raises(PlantingError, match="nan"):
            check_function_preserving(Shift(0.0), Shift(float("nan")), x)
        with pytest.raises(PlantingError, match=r"outputs of \[3\], \[3\], \[3\] became outputs of \[3\]"):
            check_function_preserving(Shift(0.0), nn.Identity(), x)

    def test_runs_in_eval_and_restores_the_mode(self):
        net = paper_net(batch_norm=True).train()
        net.bn3.eval()
        modes = [module.training for module in net.modules()]
        before = trunk_hash(net)
        assert check_function_preserving(net, net, images()) == 0
        assert [module.training for module in net.modules()] == modes
        assert trunk_hash(net) == before
