"""Whatever cannot be proved to grow is refused, layer by layer, with a reason in plain words."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from plantops.graph import Group, trace
from plantops.planting.merge import merge
from plantops.planting.plant import plant


class Net(nn.Module):
    """Two convolutions and a linear layer, wired by ``way(net, x)``."""

    def __init__(self, way, **modules):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        for name, module in modules.items():
            setattr(self, name, module)
        self.way = way

    def forward(self, x):
        return self.way(self, x)


class Scaled(nn.Conv2d):
    """A convolution of the user's own, kept whole by the tracer because of where it says it is from."""

    __module__ = "torch.nn.modules.conv"


def parametrised_norm():
    norm = nn.BatchNorm2d(4)
    parametrize.register_parametrization(norm, "weight", nn.Identity())
    return norm


def reasons(way, **modules):
    return trace(Net(way, **modules), torch.zeros(2, 3, 4, 4)).refusals


def pooled(x):
    return x.mean((2, 3))


def lace(net, x, layer):
    """A unit of ShuffleNet v2: half of the channels, beside a layer of the other half, laced."""
    n, c, h, w = x.shape
    p, q = x.chunk(2, 1)
    return torch.cat([p, layer(q)], 1).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


WAYS = {
    "channel shuffle": (
        lambda n, x: n.fc(pooled(n.s(torch.cat([n.a(x), n.c(x)], 1)))),
        {"a": "s shuffles it in 2 groups that are not made alike", "c": "not made alike"},
        {"s": nn.ChannelShuffle(2), "c": nn.Conv2d(3, 2, 3, padding=1), "fc": nn.Linear(6, 2)},
    ),
    "channel shuffle of an odd layer": (
        lambda n, x: n.fc(pooled(n.s(torch.cat([n.a(x), x[:, :1]], 1)))),
        {"a": "s shuffles it in 2 groups that are not made alike"},
        {"s": nn.ChannelShuffle(2), "a": nn.Conv2d(3, 3, 3, padding=1)},
    ),
    "pixel shuffle of two layers": (
        lambda n, x: n.fc(pooled(n.s(torch.cat([n.a(x), n.c(x)], 1)))),
        {"a": "s folds it by 4 with other channels", "c": "s folds it by 4 with other channels"},
        {"s": nn.PixelShuffle(2), "a": nn.Conv2d(3, 3, 1), "c": nn.Conv2d(3, 5, 1), "fc": nn.Linear(2, 2)},
    ),
    "parts that are folded elsewhere": (
        lambda n, x: n.fc(pooled(F.pixel_shuffle(y := n.a(x), 2)) * pooled(n.b(y.chunk(2, 1)[0]))),
        {"a": "for which a with its 4 channels cannot grow evenly"},
        {"b": nn.Conv2d(2, 1, 1), "fc": nn.Linear(1, 2)},
    ),
    "twice, with other inputs": (
        lambda n, x: n.fc(pooled(n.b(n.a(x)) + n.b(x[:, :1].expand(-1, 4, -1, -1)))),
        {"a": "b is used 2 times, with other channels elsewhere"},
    ),
    "twice, at other places": (
        lambda n, x: n.fc(pooled(n.mix(torch.cat([n.a(x), x], 1)) + n.mix(torch.cat([x, n.a(x)], 1)))),
        {"a": "it is joined in mix with channels that are made of other parts"},
        {"mix": nn.Conv2d(7, 4, 1)},
    ),
    "literal view": (
        lambda n, x: n.fc(n.a(x).view(-1, 64)),
        {"a": "literal sizes (-1, 64)", "b": "the forward does not call it"},
        {"fc": nn.Linear(64, 2)},
    ),
    "literal features": (
        lambda n, x: n.fc(n.a(x).view(x.size(0), 64)),
        {"a": "literal sizes (size, 64)"},
        {"fc": nn.Linear(64, 2)},
    ),
    "literal batch": (lambda n, x: n.fc(n.a(x).view(2, -1)), {"a": "literal sizes (2, -1)"}, {"fc": nn.Linear(64, 2)}),
    "computed view": (
        lambda n, x: n.fc(n.a(x).view(x.size(0), x.size(2) * 16)),
        {"a": "reshaped to the sizes (size, mul)"},
        {"fc": nn.Linear(64, 2)},
    ),
    "channels as batch": (
        lambda n, x: n.fc((y := n.a(x)).view(y.size(1), -1)),
        {"a": "number of channels is read"},
        {"fc": nn.Linear(32, 2)},
    ),
    "whole shape": (
        lambda n, x: n.fc(pooled(n.b((y := n.a(x)) + torch.zeros(y.shape)))),
        {"a": "number of channels is read"},
    ),
    "flatten all": (
        lambda n, x: n.fc(n.a(x).flatten()),
        {"a": "flattens dimensions 0 to -1"},
        {"fc": nn.Linear(128, 2)},
    ),
    "flatten space": (
        lambda n, x: n.fc(pooled(n.a(x).flatten(2).unsqueeze(1))),
        {"a": "mean reduces over its channels"},
        {"fc": nn.Linear(1, 2)},
    ),
    "last dimension": (lambda n, x: n.fc(n.a(x)), {"a": "over the last dimension"}),
    "layer norm": (
        lambda n, x: n.fc(n.norm(pooled(n.a(x)))),
        {"a": "norm (LayerNorm) normalises"},
        {"norm": nn.LayerNorm(4)},
    ),
    "softmax": (lambda n, x: n.fc(n.act(pooled(n.a(x)))), {"a": "mixes its channels"}, {"act": nn.Softmax(1)}),
    "norm without statistics": (
        lambda n, x: n.fc(pooled(n.norm(n.a(x)))),
        {"a": "norm keeps no running statistics"},
        {"norm": nn.BatchNorm2d(4, track_running_stats=False)},
    ),
    "indices": (
        lambda n, x: n.fc(pooled(n.pool(n.a(x))[0])),
        {"a": "pool (MaxPool2d)"},
        {"pool": nn.MaxPool2d(2, return_indices=True)},
    ),
    "channel slice": (
        lambda n, x: n.fc(pooled(n.b(n.a(x)[:, :4]))),
        {"a": "getitem takes a range of its channels that would be others once it has grown"},
    ),
    "channels from the end": (
        lambda n, x: n.fc(pooled(n.a(x)[:, -4:])),
        {"a": "getitem takes a range of its channels that would be others"},
    ),
    "every second channel": (
        lambda n, x: n.fc(pooled(n.a(x)[:, ::2])),
        {"a": "getitem takes a range of its channels that would be others"},
        {"fc": nn.Linear(2, 2)},
    ),
    "one channel": (
        lambda n, x: n.fc(pooled(n.a(x)[:, 1].unsqueeze(1))),
        {"a": "takes one of its channels"},
        {"fc": nn.Linear(1, 2)},
    ),
    "narrow": (
        lambda n, x: n.fc(pooled(n.a(x).narrow(1, 0, 4))),
        {"a": "narrow takes a range of its channels that would be others once it has grown"},
    ),
    "channels counted for a slice of another": (
        lambda n, x: n.fc(pooled(n.a(x)) + x[:, 0, 0, : n.a(x).shape[1]]),
        {"a": "number of channels is read"},
    ),
    "channels counted for a slice elsewhere": (
        lambda n, x: n.fc(pooled(n.b(y := n.a(x)) + y[:, :, : y.shape[1]])),
        {"a": "number of channels is read"},
    ),
    "channels counted twice": (
        lambda n, x: n.fc((y := n.a(x)).view(y.size(0), y.size(1) * y.size(1) * 4)),
        {"a": "number of channels is read"},
        {"fc": nn.Linear(64, 2)},
    ),
    "keywords": (
        lambda n, x: n.fc(pooled(n.b(input=n.a(x)))),
        {"a": "b is called with keywords or with more than its input", "b": "b is called with keywords"},
    ),
    "norm by keyword": (
        lambda n, x: n.fc(pooled(n.norm(input=n.a(x)))),
        {"a": "its channels go through norm (BatchNorm2d)"},
        {"norm": nn.BatchNorm2d(4)},
    ),
    "bilinear": (
        lambda n, x: n.fc(pooled(n.a(x))) + n.mix(x[:, 0, 0], x[:, 0, 0]),
        {"mix": "mix is a Bilinear; only Conv1d, Conv2d"},
        {"mix": nn.Bilinear(4, 4, 2)},
    ),
    "parametrised": (
        lambda n, x: n.fc(pooled(n.a(x))),
        {"a": "a is parametrised"},
        {"a": parametrizations.weight_norm(nn.Conv2d(3, 4, 3))},
    ),
    "old spectral norm": (
        lambda n, x: n.fc(pooled(n.a(x))),
        {"a": "weight of a is computed from other tensors"},
        {"a": spectral_norm(nn.Conv2d(3, 4, 3))},
    ),
    "weight read": (
        lambda n, x: n.fc(pooled(n.a(x))) + n.a.weight.sum(),
        {"a": "a parameter of a is read directly in the forward"},
    ),
    "unused": (
        lambda n, x: n.fc(pooled(x[:, :1]) + 0 * n.a.bias.sum()),
        {"b": "does not call it"},
        {"fc": nn.Linear(1, 2)},
    ),
    "sum with the input": (
        lambda n, x: n.fc(pooled(n.b(n.a(x)) + x[:, :1])),
        {"b": "it is added to the output of getitem, which cannot grow"},
        {"b": nn.Conv2d(4, 1, 1), "fc": nn.Linear(1, 2)},
    ),
    "sum with layers of the output": (
        lambda n, x: (y := n.b(n.a(x))) + n.c(y),
        {"b": "its channels are the model's output", "c": "its channels are the model's output"},
        {"c": nn.Conv2d(4, 4, 1)},
    ),
    "raw parameter": (
        lambda n, x: n.fc(pooled(n.b(n.a(x)) * n.scale)),
        {"b": "it is multiplied with the tensor scale of the model, which cannot grow"},
        {"scale": nn.Parameter(torch.ones(4, 1, 1))},
    ),
    "broadcast": (
        lambda n, x: n.fc(pooled(n.b(x) * n.a(x))),
        {"b": "it is multiplied with a tensor of more channels (broadcasting)"},
        {"b": nn.Conv2d(3, 1, 3, padding=1)},
    ),
    "other parts": (
        lambda n, x: n.fc(pooled(torch.cat([n.a(x), x], 1) + n.b(x))),
        {"a": "it is added to channels that are made of other parts", "b": "channels that are made of other parts"},
        {"b": nn.Conv2d(3, 7, 3, padding=1), "fc": nn.Linear(7, 2)},
    ),
    "part that cannot grow": (
        lambda n, x: n.fc(pooled(torch.cat([n.a(x), x], 1) + torch.cat([n.c(x), n.b(x)], 1))),
        {"b": "it is added to channels that cannot grow"},
        {"b": nn.Conv2d(3, 3, 1), "c": nn.Conv2d(3, 4, 3, padding=1), "fc": nn.Linear(7, 2)},
    ),
    "chunk": (
        lambda n, x: n.fc(pooled(n.b(n.a(x).chunk(3, 1)[0]))),
        {"a": "chunk splits it into 3 parts that are not made alike"},
        {"b": nn.Conv2d(2, 4, 1)},
    ),
    "chunk of unlike layers": (
        lambda n, x: n.fc(pooled(n.b(torch.cat([n.a(x), n.c(x)], 1).chunk(2, 1)[0]))),
        {"a": "chunk splits it into 2 parts that are not made alike", "c": "not made alike"},
        {"b": nn.Conv2d(3, 4, 1), "c": nn.Conv2d(3, 2, 3, padding=1)},
    ),
    "chunks of chunks": (
        lambda n, x: n.fc(pooled(lace(n, lace(n, n.a(x), n.b), n.c))),
        {"a": "view_1 groups its channels in a way that growth would not keep"},
        {"b": nn.Conv2d(2, 2, 1), "c": nn.Conv2d(2, 2, 1)},
    ),
    "split": (
        lambda n, x: n.fc(pooled(n.b(n.a(x).split(2, 1)[0]))),
        {"a": "split splits it into parts of literal sizes, which would not be its channels once it has grown"},
        {"b": nn.Conv2d(2, 4, 1)},
    ),
    "split in sizes": (
        lambda n, x: n.fc(pooled(n.b(torch.split(n.a(x), [1, 3], dim=1)[1]))),
        {"a": "split splits it into parts of literal sizes"},
        {"b": nn.Conv2d(3, 4, 1)},
    ),
    "unbind": (
        lambda n, x: n.fc(torch.stack([p.mean((1, 2)) for p in torch.unbind(n.a(x), 1)[:1]], 1)),
        {"a": "unbind takes its channels apart one by one"},
        {"fc": nn.Linear(1, 2)},
    ),
    "glu": (
        lambda n, x: n.fc(pooled(n.glu(torch.cat([n.a(x), x[:, :2]], 1)))),
        {"a": "glu splits it into 2 parts that are not made alike"},
        {"glu": nn.GLU(1), "fc": nn.Linear(3, 2)},
    ),
    "stack": (
        lambda n, x: n.fc(pooled(torch.stack([n.a(x), n.b(n.a1(x)), x[:, :1].expand(-1, 4, -1, -1)]).sum(0))),
        {"a": "it is stacked with a tensor that cannot grow", "b": "it is stacked"},
        {"a1": nn.Conv2d(3, 4, 1)},
    ),
    "stacked with features elsewhere": (
        lambda n, x: n.fc(pooled(torch.stack([n.a(x), n.b(n.a(x)).transpose(1, 2)]).sum(0))),
        {"b": "it is stacked with a tensor whose channels lie in another dimension"},
    ),
    "softmax over them": (lambda n, x: n.fc(torch.softmax(pooled(n.a(x)), 1)), {"a": "go through softmax"}),
    "unlike layers in a sum": (
        lambda n, x: n.fc(pooled(torch.cat([n.a(x), n.c(x)], 1) + n.b(x))),
        {"a": "it is added to channels that are made of other parts", "b": "made of other parts"},
        {"c": nn.Conv2d(3, 2, 3, padding=1), "b": nn.Conv2d(3, 6, 3, padding=1), "fc": nn.Linear(6, 2)},
    ),
    "grouped alone": (
        lambda n, x: n.fc(pooled(n.a(x))),
        {"a": "a is a grouped convolution (groups=3) whose input cannot grow"},
        {"a": nn.Conv2d(3, 3, 1, groups=3), "fc": nn.Linear(3, 2)},
    ),
    "groups across parts": (
        lambda n, x: n.fc(pooled(n.b(torch.cat([n.a(x), n.c(x)], 1)))),
        {"a": "b is a grouped convolution whose groups mix it with other channels", "b": "mix it with other"},
        {"c": nn.Conv2d(3, 2, 3, padding=1), "b": nn.Conv2d(6, 4, 1, groups=2)},
    ),
    "group norm across parts": (
        lambda n, x: n.fc(pooled(n.norm(torch.cat([n.a(x), n.c(x)], 1)))),
        {"a": "norm (GroupNorm) normalises it together with other channels"},
        {"c": nn.Conv2d(3, 2, 3, padding=1), "norm": nn.GroupNorm(2, 6), "fc": nn.Linear(6, 2)},
    ),
    "instance norm with statistics": (
        lambda n, x: n.fc(pooled(n.norm(n.a(x)))),
        {"a": "norm is an instance norm with running statistics"},
        {"norm": nn.InstanceNorm2d(4, track_running_stats=True)},
    ),
    "attention": (
        lambda n, x: n.fc(n.mix(y := n.a(x).flatten(2).transpose(1, 2), y, y)[0].mean(1)),
        {"a": "its channels go through mix (MultiheadAttention)"},
        {"mix": nn.MultiheadAttention(4, 1, batch_first=True)},
    ),
    "channels multiplied": (
        lambda n, x: n.fc(((y := n.a(x).flatten(2)) @ y.transpose(1, 2)).mean(1)),
        {"a": "its channels go through matmul, which trace does not follow"},
    ),
    "read by no layer": (
        lambda n, x: n.fc(pooled(x[:, :1]).expand(-1, 4)) + (0 * n.a(x).detach().size(0)),
        {"a": "its channels go through detach"},
    ),
    "not used": (
        lambda n, x: (n.a(x), n.fc(pooled(n.b(x[:, [0, 1, 2, 0]]))))[1],
        {"a": "its output is not used"},
    ),
    "no layer behind": (
        lambda n, x: (n.a(x).relu(), n.fc(pooled(n.b(x[:, [0, 1, 2, 0]]))))[1],
        {"a": "no layer reads its channels"},
    ),
    "complex weights": (
        lambda n, x: n.fc(pooled(n.a(x.to(torch.complex64)).abs())),
        {"a": "the weight of a is torch.complex64; only real floating-point weights can grow"},
        {"a": nn.Conv2d(3, 4, 3, dtype=torch.complex64)},
    ),
    "not one kind of convolution": (
        lambda n, x: n.fc(pooled(n.lazy(x))),
        {"lazy": "lazy is a Scaled; only Conv1d, Conv2d"},
        {"lazy": Scaled(3, 4, 1)},
    ),
    "channels as a sequence": (
        lambda n, x: n.fc(n.seq(pooled(n.a(x)).unsqueeze(1)).squeeze(1)),
        {"a": "seq is a convolution over features that are not channels of an image"},
        {"seq": nn.Conv1d(1, 1, 3, padding=1)},
    ),
    "without a batch": (
        lambda n, x: n.fc(n.b(n.a(x[0])).mean((1, 2))),
        {"a": "it gives [4, 4, 4] instead of a batch [N, C, H, W]", "b": "instead of a batch"},
    ),
    "norm over tokens": (
        lambda n, x: n.fc(n.norm(n.a(x).flatten(2).transpose(1, 2)).mean(1)),
        {"a": "norm normalises dimension 1, its channels are the last"},
        {"norm": nn.BatchNorm1d(16)},
    ),
    "slopes over tokens": (
        lambda n, x: n.fc(n.slopes(n.a(x).flatten(2).transpose(1, 2)).mean(1)),
        {"a": "slopes has slopes for dimension 1, its channels are the last"},
        {"slopes": nn.PReLU(16)},
    ),
    "shared slopes": (
        lambda n, x: n.fc(pooled(n.slopes(n.a(x)))) * n.slopes.weight.sum(),
        {"a": "a parameter of slopes is read directly in the forward"},
        {"slopes": nn.PReLU(4)},
    ),
    "parametrised norm": (
        lambda n, x: n.fc(pooled(n.norm(n.a(x)))),
        {"a": "norm is parametrised"},
        {"norm": parametrised_norm()},
    ),
    "local response norm": (
        lambda n, x: n.fc(pooled(n.norm(n.a(x)))),
        {"a": "norm (LocalResponseNorm) normalises over its channels"},
        {"norm": nn.LocalResponseNorm(2)},
    ),
    "layer norm as a function": (
        lambda n, x: n.fc(F.layer_norm(pooled(n.a(x)), (4,))),
        {"a": "layer_norm normalises over its channels"},
    ),
    "sum along another dimension": (
        lambda n, x: n.fc(pooled((y := n.a(x)) + n.b(y).transpose(1, 2))),
        {"b": "it is added to a tensor whose channels lie in another dimension"},
    ),
    "concatenated with channels elsewhere": (
        lambda n, x: n.fc(pooled(torch.cat([n.a(x), n.b(n.a(x)).transpose(1, 2)], 1))),
        {"b": "it is concatenated with a tensor whose channels lie in another dimension"},
        {"fc": nn.Linear(8, 2)},
    ),
    "concatenated along the height": (
        lambda n, x: n.fc(pooled(torch.cat([n.a(x), x[:, [0, 1, 2, 0]]], 2))),
        {"a": "it is concatenated, along another dimension, with a tensor that cannot grow"},
    ),
    "expanded": (
        lambda n, x: n.fc(pooled(n.a(x).expand(2, 4, 4, 4))),
        {"a": "expand expands it to literal sizes, which need not fit once it has grown"},
    ),
    "expanded elsewhere": (
        lambda n, x: n.fc(pooled((y := n.a(x)).unsqueeze(-1).expand(-1, -1, -1, -1, y.shape[1]).sum(-1))),
        {"a": "number of channels is read"},
    ),
    "flattened behind the positions": (
        lambda n, x: n.fc(n.a(x).permute(0, 2, 3, 1).flatten(1)),
        {"a": "flatten flattens its features together with other dimensions"},
        {"fc": nn.Linear(64, 2)},
    ),
    "a number of parts that is computed": (
        lambda n, x: n.fc(pooled(n.a(x).chunk(x.shape[1] - 1, 1)[0])),
        {"a": "chunk splits it into a number of parts that the forward computes"},
        {"fc": nn.Linear(2, 2)},
    ),
    "two outputs": (lambda n, x: {"logits": n.fc(pooled(y := n.a(x))), "features": y}, {"a": "the model's output"}),
}


@pytest.mark.parametrize("case", WAYS)
def test_reason(case):
    way, expected, modules = (*WAYS[case], {})[:3]
    found = reasons(way, **modules)
    for name, text in expected.items():
        assert text in found[name]


class Subclass(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def test_subclasses_may_compute_anything():
    assert (
        "forward does not call it as a module" in reasons(lambda n, x: n.fc(pooled(n.a(x))), a=Subclass(3, 4, 1))["a"]
    )


def test_shared_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    plan = trace(model, torch.zeros(1, 3))
    assert "shares its weight with 1" in plan.refusals["0"]
    assert "shares its weight with 0" in plan.refusals["1"]
    assert len(plan) == 0


def test_forwards_that_depend_on_the_mode():
    found = reasons(lambda n, x: n.fc(pooled(n.a(x) if n.training else n.b(n.a(x)))))
    assert set(found) == {"a", "b", "fc"}
    assert all("in train() than in eval()" in reason for reason in found.values())


def test_functional_dropout_that_is_always_on():
    found = reasons(lambda n, x: n.fc(pooled(F.dropout(n.a(x), 0.5))))
    assert "calls dropout as a function that is on in eval() too" in found["a"]


def test_functional_batch_norm_that_is_always_on():
    found = reasons(lambda n, x: n.fc(pooled(F.batch_norm(n.a(x), None, None, training=True))))
    assert "calls batch_norm as a function that is on in eval() too" in found["a"]


def test_layers_of_a_site_that_a_group_took():
    net = Net(lambda n, x: n.fc(pooled(n.a(x) + n.b(n.a(x)))))
    plan = trace(net, torch.zeros(2, 3, 4, 4), groups=[Group(["b"], ["fc"])])
    assert list(plan) == ["b"]
    assert plan.refusals["a"] == "its channels grow only with layers that a group named by hand has taken"


def test_control_flow_on_values_refuses_every_layer():
    found = reasons(lambda n, x: n.fc(pooled(n.a(x) if x.sum() > 0 else n.b(n.a(x)))))
    assert set(found) == {"a", "b", "fc"}
    assert all(reason.startswith("torch.fx cannot follow") for reason in found.values())


def test_wrapped_models_say_how_to_do_it_right():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"model is wrapped in DataParallel: use model\.module"):
        trace(nn.DataParallel(plain), x)
    with pytest.raises(ValueError, match=r"model is compiled: use model\._orig_mod"):
        trace(torch.compile(plain, backend="eager"), x)
    with pytest.raises(ValueError, match=r"model\.0 is compiled: use model\.0\._orig_mod"):
        trace(nn.Sequential(torch.compile(plain, backend="eager")), x)
    with pytest.raises(ValueError, match="model is a TorchScript module: use the Python module that it was made from"):
        trace(torch.jit.trace(plain, x), x)
    planted = plant(plain, trace(plain, x)["0"], 1)
    with pytest.raises(ValueError, match=r"model is wrapped in DataParallel: use model\.module, and wrap the merged"):
        merge(nn.DataParallel(planted))
    with pytest.raises(ValueError, match=r"model is compiled: use model\._orig_mod, and compile the merged model"):
        merge(torch.compile(planted, backend="eager"))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got Tensor"):
        merge(x)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got function"):
        trace(lambda y: y, x)


def test_models_that_are_spread_over_processes_say_how_to_do_it_right():
    x = torch.zeros(1, 3, 4, 4)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
        with pytest.raises(ValueError, match=r"is wrapped in DistributedDataParallel: use model\.module, and wrap the"):
            trace(nn.parallel.DistributedDataParallel(plain), x)
        plan = trace(plain, x)
        with pytest.raises(ValueError, match=r"use model\.module, and wrap the merged model again"):
            merge(nn.parallel.DistributedDataParallel(plant(plain, plan["0"], 1)))
        with pytest.raises(ValueError, match=r"model\.0 is wrapped in DistributedDataParallel: use model\.0\.module"):
            plant(nn.Sequential(nn.parallel.DistributedDataParallel(plain)), plan["0"], 1)
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        sharded = fully_shard(copy.deepcopy(plain), mesh=mesh)
        with pytest.raises(ValueError, match="model is sharded by fully_shard: plant the module before it is sharded"):
            trace(sharded, x)
    finally:
        torch.distributed.destroy_process_group()


def test_wrong_example_inputs():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match="example_inputs: the model's forward does not accept them"):
        trace(plain, torch.zeros(1, 5, 4, 4))
    for empty in ((), torch.zeros(0, 3, 4, 4), "text"):
        with pytest.raises(ValueError, match="at least one sample"):
            trace(plain, empty)
