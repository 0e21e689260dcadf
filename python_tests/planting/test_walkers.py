"""Frozen is bit-exact, also after tools that walk over modules and tensors: what is not prevented, merge notices."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_avg_fn, update_bn

from plantops.graph import trace
from plantops.models import count_parameters
from plantops.nn import PlantedBatchNorm2d, PlantedBatchNorm3d
from plantops.planting.carry import carry_state
from plantops.planting.check import check_function_preserving
from plantops.planting.merge import merge
from plantops.planting.pins import is_pinned
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters, trunk_hash
from python_tests.planting.networks import disturbed, images, paper_net, planned, seeded, train_steps

LOADER = [images(seed) for seed in range(3)]


def net_and_site():
    net = paper_net(batch_norm=True).train()
    net.conv3 = nn.Sequential(net.conv3, nn.Dropout(0.5))
    return net, planned(net)["conv2"]


def planted_net():
    return plant(*net_and_site(), 2, "kaiming", generator=seeded(3)).train()


def averaged(avg_fn=None, **options):
    def walk(model):
        average = AveragedModel(model, avg_fn=avg_fn, **options)
        optimizer = torch.optim.SGD(planted_parameters(model), 0.1)
        for _ in range(4):
            train_steps(model, optimizer, 1)
            average.update_parameters(model)
        update_bn(LOADER, average)
        return average.module

    return walk


def for_all(touch):
    def walk(model):
        return model.apply(touch)

    return walk


def start_norms(module):
    if isinstance(module, (nn.BatchNorm2d, nn.modules.batchnorm._BatchNorm)):
        module.reset_parameters()
        nn.init.constant_(module.weight, 0.5)


def reset_statistics(module):
    if hasattr(module, "reset_running_stats"):
        module.reset_running_stats()


def set_training(module):
    module.training = True


def stop_norms(module):
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.eval()


def put_statistics(module):
    """As Lightning's StochasticWeightAveraging does: other tensors in their place."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.running_mean = torch.zeros_like(module.running_mean)
        module.running_var = torch.ones_like(module.running_var)
        module.num_batches_tracked = torch.zeros_like(module.num_batches_tracked)


def forget_momentum(module):
    if hasattr(module, "momentum"):
        module.momentum = None


def updated(model):
    update_bn(LOADER, model)
    return model


def fused(model):
    nn.utils.fusion.fuse_conv_bn_eval(model.conv1.eval(), model.bn1)
    model.train()
    return model


def loaded(model):
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})  # says no version
    return model


def without_count(model):
    state = {key: value for key, value in model.state_dict().items() if key != "bn1.num_batches_tracked"}
    model.load_state_dict(state)
    return model


HARMLESS = {
    "update_bn": updated,
    "SWA": averaged(),
    "SWA, avg_fn": averaged(get_swa_avg_fn()),
    "SWA, buffers": averaged(use_buffers=True),
    "EMA": averaged(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "fuse_conv_bn_eval": fused,
    "init of norms": for_all(start_norms),
    "reset_running_stats": for_all(reset_statistics),
    "statistics = others": for_all(put_statistics),
    "training = True": for_all(set_training),
    "momentum = None": for_all(forget_momentum),
    "norms in eval": for_all(stop_norms),
    "requires_grad_": lambda model: model.requires_grad_(False),
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "double": lambda model: model.double(),
    "load_state_dict": loaded,
    "load_state_dict of before there was a count": without_count,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_no_walker_moves_a_pinned_norm(name):
    model = planted_net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    planted = HARMLESS[name](model)
    planted.train()
    with torch.no_grad():
        for x in LOADER:
            planted(x.to(next(planted.parameters()).dtype))
    after = planted.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        if not key.endswith(("_out", "_in")):
            assert torch.equal(after[key], value), key
    merged = merge(planted)
    assert type(merged.bn1) is type(merged.bn2) is nn.BatchNorm2d
    x = images(9).to(next(merged.parameters()).dtype)
    check_function_preserving(planted, merged, x)
    merged.train()
    assert all(module.training for module in merged.modules())


def drifted(model):
    return averaged(get_ema_avg_fn(0.9))(model)


def started(module):
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def reset(module):
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def fused_in_place(model):
    model.conv1 = nn.utils.fusion.fuse_conv_bn_eval(model.conv1.eval(), model.bn1)
    model.bn1 = nn.Identity()
    return model


def fused_planted(model):
    model.eval()
    model.conv3[0] = nn.utils.fusion.fuse_conv_bn_eval(model.conv3[0], model.bn3)
    return model


def unfrozen(model):
    nn.Module.requires_grad_(model, True)
    optimizer = torch.optim.SGD([model.conv1.weight], 0.1)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    optimizer.step()
    return model


def in_data(model):
    model.bn1.running_mean.data.mul_(1.0001)
    return model


def one_bit(model):
    model.conv2.weight.view(torch.int32).flatten()[3] ^= 1
    return model


def another_norm(model):
    own = model.bn1
    model.bn1 = nn.BatchNorm2d(own.num_features)
    model.bn1.load_state_dict(own.state_dict())
    return model


class Quantised(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("packed", (weight.detach() / 0.1).round().to(torch.int8))


class Packed(torch.Tensor):
    """What quantisers put in the place of a weight: a tensor of a class of its own."""


def packed(model):
    model.fc1.weight = nn.Parameter(model.fc1.weight.detach().as_subclass(Packed), requires_grad=False)
    return model


def quantised(model):
    model.fc1 = Quantised(model.fc1.weight)
    return model


NOTICED = {
    "EMA, avg_fn": (drifted, r"has moved since plant: [\w.]+ has other bits"),
    "init of convolutions": (for_all(started), r"conv1\.weight"),
    "reset_parameters": (for_all(reset), r"conv1\.weight"),
    "half().float()": (lambda model: model.half().float(), r"conv1\.(weight|bias)"),
    "fused in place": (fused_in_place, r"bn1 was held in eval\(\), now there is a Identity"),
    "fused planted": (fused_planted, r"conv3\.0\.weight"),
    "a step": (unfrozen, r"conv1\.weight"),
    "through data": (in_data, r"bn1\.running_mean"),
    "one bit": (one_bit, r"conv2\.weight"),
    "another norm": (another_norm, r"bn1 was held .* now there is a BatchNorm2d"),
    "another tensor": (packed, r"fc1\.weight is a Packed now"),
    "another layer": (quantised, r"fc1\.(weight|bias) is gone"),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", NOTICED)
def test_merge_notices_what_moves_the_trunk(name, inplace):
    walk, message = NOTICED[name]
    planted = walk(planted_net())
    kinds = [type(module) for module in planted.modules()]
    with pytest.raises(RuntimeError, match=message):
        merge(planted, inplace=inplace)
    assert [type(module) for module in planted.modules()] == kinds


def test_a_moved_trunk_is_merged_where_it_is_asked_for():
    planted = planted_net().half().float()
    check_function_preserving(planted, merge(planted, check_trunk=False), images())


def test_an_average_of_a_planted_model_keeps_the_trunk_when_it_is_carried():
    planted = planted_net()
    before = trunk_hash(planted)
    average = AveragedModel(planted, avg_fn=get_ema_avg_fn(0.9))
    for _ in range(3):
        average.update_parameters(planted)
    assert trunk_hash(average.module) != before
    carry_state(average, planted, merge(planted))
    _, site = net_and_site()
    assert trunk_hash(average.module, site, 2) == before


def test_a_loaded_trunk_is_the_trunk_from_then_on():
    planted, other = planted_net(), planted_net()
    with torch.no_grad():
        other.conv1.weight.mul_(2)
    wrapped = nn.ModuleDict({"net": planted})
    wrapped.load_state_dict({f"net.{key}": value for key, value in other.state_dict().items()})
    merge(planted)
    planted.bn1.running_var.mul_(2)
    with pytest.raises(RuntimeError, match=r"bn1\.running_var"):
        merge(planted)


def test_update_bn_estimates_the_new_channels_anew():
    """Against their definition: the mean over batches of each batch's mean and unbiased variance."""
    planted = planted_net()
    train_steps(planted, torch.optim.SGD(planted_parameters(planted), 0.1), 5)
    seen = []
    handle = planted.conv2.register_forward_hook(lambda module, args, output: seen.append(output[:, 4:].double()))
    update_bn(LOADER, planted)
    handle.remove()
    means = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
    variances = torch.stack([y.transpose(0, 1).flatten(1).var(1) for y in seen]).mean(0)
    norm = planted.bn2
    torch.testing.assert_close(norm.running_mean_out.double(), means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var_out.double(), variances, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked_out == 3
    assert norm.momentum == 0.1


def test_norms_that_were_stopped_estimate_nothing():
    planted = planted_net().apply(stop_norms)
    before = {key: value.clone() for key, value in planted.state_dict().items()}
    with torch.no_grad():
        outputs = planted(images())
    torch.testing.assert_close(outputs, planted.eval()(images()))
    assert all(torch.equal(value, before[key]) for key, value in planted.state_dict().items())


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_converted_new_channels_are_the_planted_norms_own(kind):
    x = torch.randn(5, 5, *([4] * int(kind.__name__[-2])), generator=seeded())
    make = PlantedBatchNorm3d if kind is nn.BatchNorm3d else PlantedBatchNorm2d
    norm = make.from_bn(disturbed(nn.Sequential(kind(3)))[0], 2)
    expected = copy.deepcopy(norm)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    assert converted is norm
    assert isinstance(norm.new, nn.SyncBatchNorm)
    for one in (norm, expected):
        one.new.running_mean = torch.full_like(one.running_mean_out, 3)
        assert one.running_mean_out[0] == 3
    torch.testing.assert_close(norm(x), expected(x), rtol=0, atol=0)
    assert norm.double().state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.double().state_dict().items():
        assert torch.equal(norm.state_dict()[key], value), key


class Activated(nn.BatchNorm2d):
    """A norm of a class that torch does not know: it stays one."""

    def forward(self, input):
        return super().forward(input).relu()


def test_norms_of_other_classes_stay_ones_and_keep_their_bits():
    net = disturbed(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), Activated(4)))
    planted = plant(net.train(), trace(net, images())["0"], 2)
    before = trunk_hash(planted)
    update_bn(LOADER, planted.apply(reset_statistics))
    planted[3].reset_parameters()
    assert is_pinned(planted[3])
    assert trunk_hash(planted) == before
    merge(planted)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(planted)
    with pytest.raises(RuntimeError, match=r"3 was held in eval\(\), now there is a SyncBatchNorm in its place"):
        merge(converted)


@pytest.mark.parametrize("frozen", [1, 5])
def test_blocks_that_a_tool_has_frozen_are_warned_about(frozen, recwarn):
    """As adapters freeze all that is not theirs."""
    planted = planted_net()
    blocks = planted_parameters(planted)
    assert len(blocks) == 5
    assert count_parameters(planted) == count_parameters(merge(planted))
    assert not recwarn
    for block in blocks[:frozen]:
        block.requires_grad_(False)
    with pytest.warns(
        UserWarning, match=rf"{frozen} of 5 planted blocks do not require a gradient \(conv2\.weight_out"
    ):
        assert all(map(torch.equal, planted_parameters(planted), blocks))


def test_a_trunk_that_is_switched_on_is_refused():
    planted = planted_net().requires_grad_(True)
    with pytest.raises(ValueError, match="requires"):
        planted(images())


def traced(model):
    torch.jit.trace(model, images())


def scripted(model):
    torch.jit.script(model)


def followed(model):
    torch.fx.symbolic_trace(model)


def fused_by_fx(model):
    from torch.fx.experimental.optimization import fuse

    fuse(model.eval())


def structures():
    nets = (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(4), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)),
    )
    return [plant(net.eval(), trace(net, images())["0"], 2) for net in nets]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("convert", [traced, scripted, followed, fused_by_fx])
def test_what_follows_a_planted_model_is_told_to_merge_first(convert):
    for planted in structures():
        with pytest.raises(
            ValueError, match=r"a planted layer \(Planted\w+\) cannot be .* plantops.merge\(model\) first"
        ):
            convert(planted)
        convert(merge(planted))
