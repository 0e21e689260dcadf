"""PlantedBatchNorm: the trunk's statistics and affine stay, the new channels are an ordinary batch norm."""

import copy

import pytest
import torch
from torch import nn

from plantops.nn import PlantedBatchNorm1d, PlantedBatchNorm2d

SETTINGS = [{}, {"momentum": None}, {"momentum": 0.3, "eps": 1e-2}, {"affine": False}]
KINDS = [(nn.BatchNorm2d, (5, 2)), (nn.BatchNorm1d, ()), (nn.BatchNorm1d, (4,))]
F64 = torch.float64


def trained_norm(kind, dims, **settings):
    torch.manual_seed(0)
    bn = kind(4, dtype=F64, **settings)
    if bn.affine:
        nn.init.uniform_(bn.weight)
        nn.init.normal_(bn.bias)
    for _ in range(3):
        bn(torch.randn(6, 4, *dims, dtype=F64) * 2 + 1)
    return bn


def cut(x: torch.Tensor, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([x[:, :start], x[:, start + count :]], 1), x[:, start : start + count]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("kind", "dims"), KINDS, ids=str)
@pytest.mark.parametrize("start", [None, 0, 1])
def test_channels_in_train_and_eval(kind, dims, settings, start):
    bn = trained_norm(kind, dims, **settings)
    planted = PlantedBatchNorm2d.from_bn(bn, 2, start=start)
    assert type(planted) is (PlantedBatchNorm2d if kind is nn.BatchNorm2d else PlantedBatchNorm1d)
    trunk, fresh = copy.deepcopy(bn).eval(), kind(2, dtype=F64, **settings)
    frozen = {name: value.clone() for name, value in planted.state_dict().items() if not name.endswith("_out")}
    at = 4 if start is None else start
    for _ in range(3):
        x = torch.randn(6, 6, *dims, dtype=F64)
        old, new = cut(x, at, 2)
        ours = cut(planted(x), at, 2)
        torch.testing.assert_close(ours[0], trunk(old), rtol=0, atol=1e-13)
        torch.testing.assert_close(ours[1], fresh(new), rtol=0, atol=1e-13)
    for name, value in fresh.state_dict().items():
        assert torch.equal(planted.state_dict()[f"{name}_out"], value), name
    for name, value in frozen.items():
        assert torch.equal(planted.state_dict()[name], value), name
    planted.eval()
    fresh.eval()
    ours = cut(planted(x), at, 2)
    torch.testing.assert_close(ours[0], trunk(old), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours[1], fresh(new), rtol=0, atol=1e-13)
    merged = planted.merge()
    assert type(merged) is kind
    assert not merged.training
    torch.testing.assert_close(merged(x), planted(x), rtol=0, atol=1e-13)
    assert merged.num_batches_tracked == bn.num_batches_tracked == 3
    kind(6, dtype=F64, **settings).load_state_dict(merged.state_dict())


def test_gradients_are_the_new_channels_own():
    bn = trained_norm(nn.BatchNorm2d, (3, 3))
    planted = PlantedBatchNorm2d.from_bn(bn, 2, start=1)
    fresh = nn.BatchNorm2d(2, dtype=F64)
    x = torch.randn(6, 6, 3, 3, dtype=F64, requires_grad=True)
    upstream = torch.randn(6, 6, 3, 3, dtype=F64)
    ours = torch.autograd.grad(planted(x), (x, planted.weight_out, planted.bias_out), upstream)
    new = x[:, 1:3].detach().requires_grad_()
    theirs = torch.autograd.grad(fresh(new), (new, fresh.weight, fresh.bias), upstream[:, 1:3])
    torch.testing.assert_close((ours[0][:, 1:3], *ours[1:]), theirs)
    scale = (bn.weight * (bn.running_var + bn.eps).rsqrt()).detach().view(4, 1, 1)
    old_upstream = torch.cat([upstream[:, :1], upstream[:, 3:]], 1)
    torch.testing.assert_close(torch.cat([ours[0][:, :1], ours[0][:, 3:]], 1), old_upstream * scale)
    assert {name for name, p in planted.named_parameters() if p.requires_grad} == {"weight_out", "bias_out"}


def test_without_running_statistics_everything_uses_the_batch():
    bn = nn.BatchNorm2d(4, track_running_stats=False, dtype=F64)
    planted = PlantedBatchNorm2d.from_bn(bn, 2)
    plain = nn.BatchNorm2d(6, track_running_stats=False, dtype=F64)
    x = torch.randn(5, 6, 3, 3, dtype=F64)
    for mode in (True, False):
        torch.testing.assert_close(planted.train(mode)(x), plain.train(mode)(x))
    torch.testing.assert_close(planted.merge()(x), plain(x))


def test_requires_grad_and_state_dict():
    bn = trained_norm(nn.BatchNorm2d, (3, 3))
    bn.bias.requires_grad_(False)
    planted = PlantedBatchNorm2d.from_bn(bn, 2)
    merged = planted.merge()
    assert (merged.weight.requires_grad, merged.bias.requires_grad) == (True, False)
    assert set(bn.state_dict()) == {name for name in planted.state_dict() if not name.endswith("_out")}
    x = torch.randn(5, 6, 3, 3, dtype=F64)
    planted(x)
    other = PlantedBatchNorm2d.from_bn(nn.BatchNorm2d(4, dtype=F64), 2)
    other.load_state_dict(planted.state_dict())
    assert torch.equal(other.eval()(x), planted.eval()(x))
    assert torch.equal(copy.deepcopy(planted)(x), planted(x))


def test_mistakes_are_named():
    bn = nn.BatchNorm2d(4)
    with pytest.raises(TypeError, match=r"bn: .*got LayerNorm"):
        PlantedBatchNorm2d.from_bn(nn.LayerNorm(4), 2)
    with pytest.raises(ValueError, match=r"new_features: .*-1"):
        PlantedBatchNorm2d.from_bn(bn, -1)
    with pytest.raises(ValueError, match=r"start: .*\[0, 4\], got 5"):
        PlantedBatchNorm2d.from_bn(bn, 2, start=5)
    with pytest.raises(ValueError, match=r"input: expected 4 dimensions with 6 channels, got \(2, 4, 3, 3\)"):
        PlantedBatchNorm2d.from_bn(bn, 2)(torch.randn(2, 4, 3, 3))
    assert PlantedBatchNorm2d.from_bn(bn, 2, start=0).extra_repr() == (
        "4 + 2, start=0, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True"
    )
