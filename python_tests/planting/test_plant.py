"""plant() at every site: nothing changes, only the planted blocks train, the rest is as it was."""

import copy
import dataclasses
import io

import pytest
import torch
from torch import nn

from plantops.graph import trace
from plantops.nn import PlantedBatchNorm2d, PlantedConv2d, PlantedLinear
from plantops.planting.check import check_function_preserving
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters, trunk_hash, trunk_state
from python_tests.planting.networks import all_moved, copies, disturbed, images, paper_net, planned, seeded, train_steps

SITES = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc1"]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", SITES)
def test_zero_in_keeps_the_function_and_adds_what_the_plan_says(name, batch_norm):
    net = paper_net(batch_norm)
    site = planned(net)[name]
    planted = plant(net, site, 3, generator=seeded())
    error = check_function_preserving(net, planted, images())
    assert error <= 4 * torch.finfo(torch.float32).eps * net.eval()(images()).abs().max()
    assert sum(p.numel() for p in planted_parameters(planted)) == 3 * site.parameters_per_channel
    assert type(planted) is type(net)
    reader = planted.get_submodule(site.consumers[0].name)
    assert torch.equal(reader.weight_in, torch.zeros_like(reader.weight_in))
    assert planted.get_submodule(name).weight_out.abs().max() > 0


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", SITES)
def test_planted_and_merged_networks_agree_after_training(name, batch_norm):
    net = paper_net(batch_norm).train()
    site = planned(net)[name]
    planted = plant(net, site, 2, "kaiming", generator=seeded(1))
    before = trunk_hash(planted)
    start = copies(planted)
    train_steps(planted, torch.optim.SGD(planted_parameters(planted), 0.05), 3)
    assert all_moved(start, planted)
    merged = merge(planted)
    check_function_preserving(planted, merged, images())
    assert trunk_hash(merged, site, 2) == trunk_hash(planted) == before == trunk_hash(net)
    assert list(merged.state_dict()) == list(net.state_dict())
    grown = planned(merged)[name]
    assert grown.width == site.width + 2
    assert {type(m) for m in merged.modules()} == {type(m) for m in net.modules()}


@pytest.mark.parametrize("name", SITES)
def test_gradients_into_planted_channels_alone_train_the_same(name):
    net = paper_net(batch_norm=True).double()
    site = trace(net, images(dtype=torch.float64))[name]
    gradients = []
    for input_grad in ("full", "planted"):
        planted = plant(net, site, 2, "kaiming", generator=seeded(), input_grad=input_grad)
        planted(images(dtype=torch.float64)).square().sum().backward()
        gradients.append([parameter.grad for parameter in planted_parameters(planted)])
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="input_grad must be 'full' or 'planted', got 'none'"):
        plant(net, site, 2, input_grad="none")


def test_without_inplace_the_model_stays_and_with_it_is_changed():
    net = paper_net(batch_norm=True)
    before = trunk_hash(net)
    planted = plant(net, planned(net)["conv2"], 2)
    assert trunk_hash(net) == before
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert type(net.conv2) is nn.Conv2d
    assert isinstance(planted.conv2, PlantedConv2d)
    assert isinstance(planted.bn2, PlantedBatchNorm2d)
    assert isinstance(planted.conv3, PlantedConv2d)
    assert plant(net, planned(net)["conv5"], 2, inplace=True) is net
    assert isinstance(net.fc1, PlantedLinear)
    assert merge(net, inplace=True) is net
    assert type(net.fc1) is nn.Linear


def test_only_planted_parameters_train_and_merge_restores():
    net = paper_net(batch_norm=True)
    net.fc2.bias.requires_grad_(False)
    net.conv3.weight.requires_grad_(False)
    net.conv1.weight.grad = torch.ones_like(net.conv1.weight)
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    planted = plant(net, planned(net)["conv3"], 2)
    training = {name for name, parameter in planted.named_parameters() if parameter.requires_grad}
    assert training == {"conv3.weight_out", "conv3.bias_out", "bn3.weight_out", "bn3.bias_out", "conv4.weight_in"}
    assert planted.conv1.weight.grad is None
    assert net.conv1.weight.grad is not None
    merged = merge(planted)
    assert {name: parameter.requires_grad for name, parameter in merged.named_parameters()} == flags


def with_dropout():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.RReLU(), nn.Dropout2d(0.5), nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5),
        nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4),
    )  # fmt: skip
    return disturbed(net)


@pytest.mark.parametrize("index", ["0", "4"])
def test_norms_and_dropout_of_the_trunk_are_pinned_across_train(index):
    net = with_dropout().train()
    planted = plant(net, planned(net)[index], 2, generator=seeded())
    expected = net.eval()(images())
    for module in (planted, planted.train(), planted.eval(), planted.train(True)):
        before = trunk_hash(module)
        state = torch.get_rng_state()
        torch.testing.assert_close(module(images()), expected, rtol=1e-5, atol=1e-6)
        assert trunk_hash(module) == before
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [True, False])
def test_merge_gives_norms_and_dropout_back(mode):
    net = with_dropout().train()
    classes = [type(module) for module in net.modules()]
    planted = plant(net, planned(net)["4"], 2).train(mode)
    merged = merge(planted)
    assert [type(module) for module in merged.modules()] == classes
    assert [module.training for module in merged.modules()] == [mode] * len(classes)
    assert vars(merged[11]).keys() == vars(net[11]).keys()
    assert vars(merged).keys() == vars(net).keys()
    merged.train()
    assert not torch.equal(merged(images()), merged(images()))


def test_a_mixed_mode_survives():
    net = with_dropout().train()
    net[1].eval()
    net[3].eval()
    modes = [module.training for module in net.modules()]
    assert [module.training for module in merge(plant(net, planned(net)["0"], 1)).modules()] == modes


def test_new_norm_channels_use_and_keep_their_own_statistics():
    net = paper_net(batch_norm=True).train()
    planted = plant(net, planned(net)["conv2"], 2, generator=seeded())
    planted(images())
    assert planted.bn2.num_batches_tracked_out == 1
    assert planted.bn2.running_mean_out.abs().min() > 0
    assert planted.bn2.num_batches_tracked == 7
    merged = merge(planted)
    assert torch.equal(merged.bn2.running_mean[4:], planted.bn2.running_mean_out)
    assert merged.bn2.num_batches_tracked == 7


def test_hooks_move_along_and_handles_still_remove_them():
    net = paper_net(batch_norm=True)
    calls = []
    handles = [
        net.conv2.register_forward_hook(lambda module, args, output: calls.append(output.shape[1])),
        net.conv2.register_forward_pre_hook(lambda module, args: calls.append("pre")),
        net.bn2.register_forward_hook(lambda module, args, kwargs, output: calls.append("bn"), with_kwargs=True),
        net.conv3.register_full_backward_hook(lambda module, grads, outputs: calls.append("back")),
    ]
    plant(net, planned(net)["conv2"], 2, inplace=True)
    net(images()).sum().backward()
    assert calls == ["pre", 6, "bn", "back"]
    merge(net, inplace=True)
    calls.clear()
    net(images()).sum().backward()
    assert calls == ["pre", 6, "bn", "back"]
    for handle in handles:
        handle.remove()
    calls.clear()
    net(images()).sum().backward()
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_and_memory_format_stay(dtype):
    net = paper_net(batch_norm=True).to(dtype).to(memory_format=torch.channels_last)
    planted = plant(net, planned_as(net, dtype)["conv2"], 4)
    assert {parameter.dtype for parameter in planted.parameters()} == {dtype}
    merged = merge(planted)
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
    assert merged.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert merged.conv3.weight.is_contiguous(memory_format=torch.channels_last)
    check_function_preserving(net, planted, images(dtype=dtype))


def planned_as(net, dtype):
    return trace(net, images(dtype=dtype))


def test_a_plan_applies_to_a_copy_and_growing_again_piles_nothing_up():
    net = paper_net(batch_norm=True)
    plan = planned(net)
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    grown = merge(plant(copy.deepcopy(net), plan["conv2"], 2))
    for _ in range(2):
        grown = merge(plant(grown, planned(grown)["conv2"], 2))
    assert grown.conv2.out_channels == 4 + 6
    assert {name: set(vars(module)) for name, module in grown.named_modules()} == attributes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in grown.modules())
    check_function_preserving(net, grown, images())


def test_merge_of_merge_and_of_a_plain_model():
    net = paper_net(batch_norm=True)
    merged = merge(plant(net, planned(net)["conv5"], 2, "kaiming", generator=seeded()))
    for model in (net, merged):
        again = merge(model)
        assert trunk_hash(again) == trunk_hash(model)
        assert torch.equal(again(images()), model(images()))


def test_a_planted_model_can_be_copied_and_pickled():
    net = with_dropout().train()
    planted = plant(net, planned(net)["4"], 2, "kaiming", generator=seeded())
    copied = copy.deepcopy(planted)
    file = io.BytesIO()
    torch.save(planted, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copied, loaded):
        assert trunk_hash(other) == trunk_hash(planted)
        assert torch.equal(other.eval()(images()), planted.eval()(images()))
        merged = merge(other.train())
        assert [type(module) for module in merged.modules()] == [type(module) for module in net.modules()]
        assert merged[8].training
    train_steps(copied.train(), torch.optim.SGD(planted_parameters(copied), 0.1), 1)
    assert not torch.equal(copied[4].weight_out, planted[4].weight_out)


def test_state_dict_of_a_planted_model_is_the_trunk_and_the_blocks():
    net = paper_net(batch_norm=True)
    planted = plant(net, planned(net)["conv2"], 2)
    assert list(trunk_state(planted)) == [key for key in planted.state_dict() if key in net.state_dict()]
    assert set(trunk_state(planted)) == set(net.state_dict())
    extra = set(planted.state_dict()) - set(net.state_dict())
    norm = {f"bn2.{key}_out" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert extra == {"conv2.weight_out", "conv2.bias_out", "conv3.weight_in"} | norm


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3))
        self.first = self.body[0]
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        return self.head(torch.flatten(self.body(x), 1))


def test_a_layer_registered_twice_is_swapped_in_both_places():
    net = Aliased()
    planted = plant(net, planned(net)["body.0"], 2)
    assert isinstance(planted.first, PlantedConv2d)
    assert planted.first is planted.body[0]
    merged = merge(planted)
    assert merged.first is merged.body[0]
    assert list(merged.state_dict()) == list(net.state_dict())
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_trunk_hash_sees_a_single_bit():
    net = paper_net(batch_norm=True)
    first = trunk_hash(net)
    with torch.no_grad():
        net.bn4.running_var.view(torch.int32)[0] += 1
    assert trunk_hash(net) != first
    with pytest.raises(ValueError, match="must be given together"):
        trunk_hash(net, planned(net)["conv1"])


class TestMistakes:
    net = paper_net(batch_norm=True)
    site = planned(net)["conv2"]

    @pytest.mark.parametrize("channels", [0, -3])
    def test_channels(self, channels):
        with pytest.raises(ValueError, match=f"channels must be at least 1, got {channels}"):
            plant(self.net, self.site, channels)

    @pytest.mark.parametrize("channels", [2.0, True, "2"])
    def test_channels_of_another_type(self, channels):
        with pytest.raises(TypeError, match="channels must be an integer, got"):
            plant(self.net, self.site, channels)

    def test_a_name_instead_of_a_site(self):
        with pytest.raises(TypeError, match=r"site must be a Site, such as plan\['conv2'\].*got str"):
            plant(self.net, "conv2", 1)

    def test_a_site_of_another_model(self):
        with pytest.raises(ValueError, match=r"site conv2 is of another model: it needs a layer conv2.*no such layer"):
            plant(nn.Sequential(nn.Conv2d(2, 3, 3)), self.site, 1)
        wider = merge(plant(self.net, self.site, 2))
        with pytest.raises(ValueError, match="conv2 had 4 output channels when it was traced, the model's has 6"):
            plant(wider, self.site, 1)
        site = planned(self.net)["conv1"]
        with pytest.raises(
            ValueError, match=r"conv2 had 3 input channels .*, the model's has 5; trace the model again"
        ):
            plant(merge(plant(self.net, site, 2)), dataclasses.replace(site, producers=()), 1)

    def test_planting_twice(self):
        planted = plant(self.net, self.site, 1)
        for call in (lambda: plant(planted, self.site, 1), lambda: planned(planted)):
            with pytest.raises(ValueError, match=r"is a planted layer .*call plantops\.merge\(model\) first"):
                call()

    def test_wrapped(self):
        with pytest.raises(ValueError, match=r"use model\.module"):
            plant(nn.DataParallel(self.net), self.site, 1)

    def test_an_error_leaves_an_inplace_model_as_it_was(self):
        net = paper_net()
        with pytest.raises(ValueError, match="init must be one of zero_in"):
            plant(net, planned(net)["conv2"], 1, "zeros", inplace=True)
        assert type(net.conv2) is nn.Conv2d
        assert all(parameter.requires_grad for parameter in net.parameters())
