"""PlantedConv2d and PlantedLinear: frozen trunk, initialisation, merge() to plain torch.nn."""

import copy

import pytest
import torch
from torch import nn

from plantops.nn import PlantedConv2d, PlantedLinear

CONVS = [
    {"padding": 1},
    {"padding": 1, "bias": False, "stride": 2},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": 2, "padding_mode": "circular", "dilation": 2},
    {"padding": (1, 0), "padding_mode": "replicate"},
]


def conv_of(dtype=torch.float64, last: bool = False, **options) -> nn.Conv2d:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, **options).to(dtype)
    return conv.to(memory_format=torch.channels_last) if last else conv


@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("start", [None, 0, 2])
def test_conv_merges_to_a_plain_layer_with_equal_outputs(options, last: bool, start):
    conv = conv_of(last=last, **options)
    planted = PlantedConv2d.from_conv(conv, 3, 2, in_start=start, init="kaiming")
    merged = planted.merge()
    assert type(merged) is nn.Conv2d
    assert merged.weight.is_contiguous(memory_format=torch.channels_last) == last
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(merged(x), planted(x), rtol=0, atol=1e-13)
    # the trunk's bits at their mapped positions
    at = 4 if start is None else start
    assert torch.equal(torch.cat([merged.weight[:6, :at], merged.weight[:6, at + 2 :]], 1), conv.weight)
    assert merged.bias is None or torch.equal(merged.bias[:6], conv.bias)
    again = nn.Conv2d(6, 9, 3, **options, dtype=torch.float64)
    again.load_state_dict(merged.state_dict())
    torch.testing.assert_close(again(x), merged(x), rtol=0, atol=1e-13)


def test_merged_groups_and_fused_layers():
    conv = conv_of(groups=2, padding=1)
    planted = PlantedConv2d.from_conv(conv, 3, 2, activation="relu", max_pool=2)
    merged = planted.merge()
    assert [type(layer) for layer in merged] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert merged[0].groups == 3
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(merged(x), planted(x), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="k x 3 and k x 2"):
        PlantedConv2d.from_conv(conv, 3, 1)
    with pytest.raises(ValueError, match="in_start: expected 4"):
        PlantedConv2d.from_conv(conv, 3, 2, in_start=0)


@pytest.mark.parametrize("start", [None, 0, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_merges_to_a_plain_layer_with_equal_outputs(start, bias: bool):
    linear = nn.Linear(5, 4, bias=bias, dtype=torch.float64)
    planted = PlantedLinear.from_linear(linear, 2, 3, in_start=start, init="kaiming")
    merged = planted.merge()
    assert type(merged) is nn.Linear
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(merged(x), planted(x), rtol=0, atol=1e-13)
    fused = PlantedLinear.from_linear(linear, 2, 0, activation="relu").merge()
    assert [type(layer) for layer in fused] == [nn.Linear, nn.ReLU]


def layers():
    yield PlantedConv2d.from_conv(conv_of(torch.float32, padding=1), 3, 2, init="kaiming"), torch.randn(2, 6, 5, 5)
    yield PlantedLinear.from_linear(nn.Linear(4, 6), 3, 2, init="kaiming"), torch.randn(2, 6)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_trunk_keeps_its_bits(optimizer: str):
    for layer, x in layers():
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        steps = OPTIMIZERS[optimizer](layer.parameters())
        for _ in range(10):
            steps.zero_grad()
            layer(x).square().mean().backward()
            steps.step()
        for name, value in layer.state_dict().items():
            assert torch.equal(value, before[name]) == (name in ("weight", "bias")), name


def test_zero_in_keeps_old_outputs_and_zero_out_gives_zeros():
    conv = conv_of(padding=1)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    old = conv(torch.cat([x[:, :1], x[:, 3:]], 1))
    planted = PlantedConv2d.from_conv(conv, 3, 2, in_start=1)
    torch.testing.assert_close(planted(x)[:, :6], old, rtol=0, atol=1e-14)
    assert not planted.weight_in.any()
    assert not planted.bias_out.any()
    zero = PlantedConv2d.from_conv(conv, 3, 2, in_start=1, init="zero_out")
    assert not zero(x)[:, 6:].any()
    assert zero.weight_in.all()


def test_kaiming_has_the_variance_of_he_and_comes_from_the_generator():
    conv = nn.Conv2d(30, 40, 3)
    state = torch.get_rng_state()

    def draw(seed: int) -> PlantedConv2d:
        return PlantedConv2d.from_conv(conv, 60, 50, init="kaiming", generator=torch.Generator().manual_seed(seed))

    first, second, other = draw(1), draw(1), draw(2)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("weight_out", "weight_in"):
        a, b, c = (getattr(layer, name) for layer in (first, second, other))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert float(a.detach().std()) == pytest.approx((2 / (80 * 9)) ** 0.5, rel=0.03)
    first.merge()
    assert torch.equal(torch.get_rng_state(), state)


def trained(layer):
    return [name for name, parameter in layer.named_parameters() if parameter.requires_grad]


def test_dtype_mode_memory_format_and_requires_grad_follow_the_layer():
    conv = conv_of(torch.bfloat16, last=True, padding=1).eval()
    conv.bias.requires_grad_(False)
    planted = PlantedConv2d.from_conv(conv, 8, 8)
    assert {t.dtype for t in planted.state_dict().values()} == {torch.bfloat16}
    assert planted.weight_out.is_contiguous(memory_format=torch.channels_last)
    assert not planted.training
    assert trained(planted) == ["weight_out", "bias_out", "weight_in"]
    assert planted.weight.data_ptr() == conv.weight.data_ptr()
    assert conv.weight.requires_grad
    merged = planted.merge()
    assert (merged.weight.requires_grad, merged.bias.requires_grad) == (True, False)
    assert not merged.training


def test_state_dict_and_deepcopy_round_trip():
    for layer, x in layers():
        other = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not torch.equal(other(x), layer(x))
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), layer(x))


def test_addend_and_shape_attributes():
    layer = PlantedConv2d.from_conv(conv_of(padding=1), 3, 2)
    assert (layer.in_channels, layer.out_channels, layer.planted_in, layer.planted_out) == (6, 9, 2, 3)
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    addend = torch.randn(1, 9, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x, addend), layer(x) + addend)
    assert repr(layer) == "PlantedConv2d(4 + 2, 6 + 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    linear = PlantedLinear.from_linear(nn.Linear(4, 3), 1, 2, in_start=0, activation="relu")
    assert repr(linear) == "PlantedLinear(4 + 2, 3 + 1, bias=True, in_start=0, activation='relu')"


def test_no_planted_block_is_no_parameter():
    only_in = PlantedConv2d.from_conv(conv_of(), 0, 2)
    assert only_in.weight_out is None
    assert only_in.bias_out is None
    only_out = PlantedLinear.from_linear(nn.Linear(4, 3, bias=False), 2)
    assert only_out.weight_in is None
    assert trained(only_out) == ["weight_out"]


def test_mistakes_are_named():
    conv, linear = conv_of(), nn.Linear(4, 3)
    for make in (lambda **o: PlantedConv2d.from_conv(conv, **o), lambda **o: PlantedLinear.from_linear(linear, **o)):
        with pytest.raises(ValueError, match=r"init: .*'he'"):
            make(init="he")
        with pytest.raises(ValueError, match=r"new_out: .*-1"):
            make(new_out=-1)
        with pytest.raises(ValueError, match=r"in_start: .*\[0, 4\], got 5"):
            make(new_in=1, in_start=5)
    with pytest.raises(TypeError, match=r"conv: .*got Linear"):
        PlantedConv2d.from_conv(linear)
    with pytest.raises(TypeError, match=r"linear: .*got Conv2d"):
        PlantedLinear.from_linear(conv)
