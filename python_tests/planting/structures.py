"""Small networks, one for every structure that trace follows, with the sites that it must find."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Wired(nn.Module):
    """Named modules, wired by ``way(net, x)``, with a linear head of 3 classes."""

    def __init__(self, way, features, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.fc = nn.Linear(features, 3)
        self.way = way

    def forward(self, x):
        return self.fc(self.way(self, x))


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def pool(x):
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def channels_mean(x):
    return x.mean((2, 3))


def excite(net, x):
    gate = torch.sigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(x, 1)))))
    return x * gate


def excite_linear(net, x):
    y = net.down(x.mean((2, 3)))
    return x * net.up(F.relu(y)).sigmoid().view(x.size(0), x.size(1), 1, 1)


def blocks(net, x):
    x = F.relu(net.n0(net.c0(x)))
    return channels_mean(F.relu(net.n2(net.c2(F.relu(net.n1(net.c1(x))))) + x))


def strided(net, x):
    return channels_mean(F.relu(net.n2(net.c2(F.relu(net.c1(x)))) + net.down(x)))


def dense(net, x):
    parts = [net.c0(x)]
    for norm, layer in ((net.n1, net.c1), (net.n2, net.c2)):
        parts.append(layer(F.relu(norm(torch.cat(parts, 1)))))
    return channels_mean(torch.cat(parts, 1))


def mixer(net, x):
    x = net.stem(x).flatten(2).transpose(1, 2)
    return (x + net.b(F.gelu(net.a(net.norm(x))))).mean(1)


def counted(net, x):
    x = net.a(x)
    n, c, h, w = x.shape
    return net.b(x.view(n, c, h * w).view(n, c, h, w)).mean((-2, -1))


def again(net, x):
    """A block that runs twice, with its norm and its slopes."""
    x = net.a(x)
    for _ in range(2):
        x = net.p(x + net.c(F.relu(net.n(net.b(x)))))
    return channels_mean(net.d(x))


def gated(net, x):
    p, q = net.n(net.a(x)).chunk(2, 1)
    return channels_mean(net.c(p * torch.sigmoid(q)))


def split_by_size(net, x):
    y = net.a(x)
    p, q = torch.split(y, y.shape[1] // 2, 1)
    return channels_mean(net.d(torch.cat([q, net.b(p)], 1)))


def split_in_sizes(net, x):
    y = torch.cat([x, net.a(x)], 1)
    p, q, r = y.split([2, (y.size(1) - 2) // 2, (y.size(1) - 2) // 2], dim=1)
    return channels_mean(net.b(p + q) * net.d(r))


def cross_stage(net, x):
    """A block whose second half goes through layers, beside both halves."""
    first, second = net.a(x).chunk(2, 1)
    parts = [first, second]
    for inner, outer in ((net.b, net.c), (net.d, net.e)):
        parts.append(parts[-1] + outer(F.relu(inner(parts[-1]))))
    return channels_mean(net.f(torch.cat(parts, 1)))


def sliced(net, x):
    y = net.a(x)
    half = y.shape[1] // 2
    return channels_mean(net.b(y[:, :half]) + net.c(y[:, half:]) + net.d(y.narrow(1, half, half)))


def shuffled(net, x):
    y = torch.cat([net.a(x), net.b(x)], 1)
    batch, channels, height, width = y.size()
    y = y.view(batch, 2, channels // 2, height, width)
    y = torch.transpose(y, 1, 2).contiguous().view(batch, channels, height, width)
    return channels_mean(net.c(net.n(y)))


def shuffle_and_chunk(net, x):
    y = net.a(x)
    n, c, h, w = y.shape
    p, q = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, dim=1)
    return channels_mean(net.c(torch.cat([p, net.b(q)], 1)))


def selective(net, x):
    """Selective kernels: two paths, weighed by a softmax over the paths, channel by channel."""
    paths = torch.stack([net.a(x), net.b(x)], 1)
    gate = net.up(F.relu(net.down(paths.sum(1).mean((2, 3), keepdim=True))))
    n, c, h, w = gate.shape
    return channels_mean(net.c((paths * torch.softmax(gate.view(n, 2, c // 2, h, w), 1)).sum(1)))


def maxout(net, x):
    y = net.a(x)
    return channels_mean(net.b(y.unflatten(1, (2, -1)).amax(1)))


def neighbours(net, x):
    """The mean of every two neighbouring channels."""
    y = net.a(x)
    n, c, h, w = y.shape
    return channels_mean(net.b(y.view(n, c // 2, 2, h, w).mean(2)))


def gated_mixer(net, x):
    x = net.stem(x).flatten(2).transpose(1, 2)
    return (x + net.b(F.glu(net.a(net.norm(x))))).mean(1)


def aggregated(net, x):
    """A layer that reads the same channels in several places, as they come and summed with others."""
    y = net.a(x)
    return channels_mean(net.c(torch.cat([y, net.b(y) + y, y], 1)))


N2, N1 = nn.BatchNorm2d, nn.BatchNorm1d
STRUCTURES = {
    "residual": (blocks, 4, {"c0": conv(2, 4), "n0": N2(4), "c1": conv(4, 5), "n1": N2(5), "c2": conv(5, 4),
                 "n2": N2(4)},
                 {"c0": ("c0", "c2"), "c1": ("c1",)}),
    "downsample": (strided, 4, {"c1": conv(2, 5), "c2": conv(5, 4, stride=2), "n2": N2(4), "down": conv(2, 4,
                   stride=2)},
                   {"c1": ("c1",), "c2": ("c2", "down")}),
    "reads itself": (lambda n, x: channels_mean((y := n.a(x)) + F.relu(n.b(y))), 4, {"a": conv(2, 4), "b": conv(4, 4)},
                     {"a": ("a", "b")}),
    "dense": (dense, 9, {"c0": conv(2, 4), "n1": N2(4), "c1": conv(4, 3), "n2": N2(7), "c2": conv(7, 2)},
              {"c0": ("c0",), "c1": ("c1",), "c2": ("c2",)}),
    "cat flat": (lambda n, x: torch.cat([n.a(x), n.b(x)], 1).flatten(1), 5 * 64, {"a": conv(2, 3), "b": conv(2, 2)},
                 {"a": ("a",), "b": ("b",)}),
    "cat with the input": (lambda n, x: channels_mean(n.b(torch.cat([x, n.a(x), x], 1))), 4,
                           {"a": conv(2, 3), "b": conv(7, 4)}, {"a": ("a",), "b": ("b",)}),
    "depthwise": (lambda n, x: channels_mean(n.c(F.relu(n.nb(n.b(n.a(x)))))), 5,
                  {"a": conv(2, 4, 1), "b": conv(4, 4, groups=4), "nb": N2(4), "c": conv(4, 5, 1)},
                  {"a": ("a",), "c": ("c",)}),
    "depthwise multiplier": (lambda n, x: channels_mean(n.b(n.a(x))), 8, {"a": conv(2, 4), "b": conv(4, 8, groups=4)},
                             {"a": ("a",)}),
    "depthwise in the middle": (lambda n, x: pool(n.c(torch.cat([n.a(x), n.b(x)], 1))), 5,
                                {"a": conv(2, 3), "b": conv(2, 2), "c": conv(5, 5, groups=5, bias=False)},
                                {"a": ("a",), "b": ("b",)}),
    "grouped": (lambda n, x: channels_mean(n.c(F.relu(n.b(n.a(x))))), 3,
                {"a": conv(2, 6, 1), "b": conv(6, 6, groups=3), "c": conv(6, 3, 1)}, {"a": ("a",), "c": ("c",)}),
    "grouped in the middle": (lambda n, x: pool(n.c(torch.cat([n.a(x), n.b(x)], 1))), 9,
                              {"a": conv(2, 4), "b": conv(2, 2), "c": conv(6, 9, groups=3)}, {}),
    "grouped in blocks": (lambda n, x: pool(n.c(torch.cat([n.a(x), n.b(x)], 1))), 6,
                          {"a": conv(2, 4), "b": conv(2, 2), "c": conv(6, 6, groups=3)}, {"a": ("a",), "b": ("b",)}),
    "gate": (lambda n, x: channels_mean(excite(n, n.a(x))), 4,
             {"a": conv(2, 4), "down": conv(4, 2, 1), "up": conv(2, 4, 1)}, {"a": ("a", "up"), "down": ("down",)}),
    "linear gate": (lambda n, x: channels_mean(excite_linear(n, n.a(x))), 4,
                    {"a": conv(2, 4), "down": nn.Linear(4, 2), "up": nn.Linear(2, 4)}, {"a": ("a", "up"),
                    "down": ("down",)}),
    "spatial gate": (lambda n, x: channels_mean(n.a(x) * torch.sigmoid(n.m(n.s(x)))), 4,
                     {"a": conv(2, 4), "s": conv(2, 3), "m": conv(3, 1)}, {"a": ("a",), "s": ("s",)}),
    "group norm": (lambda n, x: channels_mean(F.silu(n.g(n.a(x)))), 6, {"a": conv(2, 6), "g": nn.GroupNorm(3, 6)},
                   {"a": ("a",)}),
    "instance norm": (lambda n, x: channels_mean(F.silu(n.g(n.a(x))) ** 2), 4,
                      {"a": conv(2, 4), "g": nn.InstanceNorm2d(4, affine=True)}, {"a": ("a",)}),
    "slopes": (lambda n, x: channels_mean(n.p(torch.cat([n.a(x), n.b(x)], 1))), 5,
               {"a": conv(2, 3), "b": conv(2, 2), "p": nn.PReLU(5)}, {"a": ("a",), "b": ("b",)}),
    "perceptron block": (mixer, 4, {"stem": conv(2, 4), "norm": nn.LayerNorm(4), "a": nn.Linear(4, 6),
                         "b": nn.Linear(6, 4)},
                         {"a": ("a",)}),
    "permuted": (lambda n, x: (n.b(F.gelu(n.a(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).mean((2, 3)), 5,
                 {"a": conv(2, 4), "b": nn.Linear(4, 5)}, {"a": ("a",), "b": ("b",)}),
    "sizes as they are": (counted, 3, {"a": conv(2, 4), "b": conv(4, 3)}, {"a": ("a",), "b": ("b",)}),
    "upsampled": (lambda n, x: channels_mean(n.b(F.pad(F.interpolate(n.a(x), size=x.shape[-2:]), (1, 1)))), 3,
                  {"a": conv(2, 4, stride=2), "b": conv(4, 3)}, {"a": ("a",), "b": ("b",)}),
    "sequence": (lambda n, x: n.c(F.relu(n.n(n.b(F.max_pool1d(n.a(x.flatten(2)), 2))))).mean(2), 3,
                 {"a": nn.Conv1d(2, 4, 3), "b": nn.Conv1d(4, 4, 3, groups=4), "n": N1(4), "c": nn.Conv1d(4, 3, 3)},
                 {"a": ("a",), "c": ("c",)}),
    "volume": (lambda n, x: n.c(n.n(n.a(x.unsqueeze(2)))).mean((2, 3, 4)), 3,
               {"a": nn.Conv3d(2, 4, 1, bias=False), "n": nn.BatchNorm3d(4),
                "c": nn.Conv3d(4, 3, (1, 3, 3), padding_mode="circular", padding=(0, 1, 1))},
               {"a": ("a",), "c": ("c",)}),
    "transposed": (lambda n, x: channels_mean(n.d(torch.cat([n.c(n.b(n.a(x))), n.b2(x)], 1))), 4,
                   {"a": nn.Conv2d(2, 4, 2, stride=2), "b": nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2),
                    "c": nn.ConvTranspose2d(4, 3, 3, padding=1), "b2": nn.ConvTranspose2d(2, 2, 1, bias=False),
                    "d": nn.ConvTranspose2d(5, 4, 3, stride=2, output_padding=1)},
                   {"a": ("a",), "c": ("c",), "b2": ("b2",), "d": ("d",)}),
    "siamese": (lambda n, x: channels_mean(n.n(n.a(x)) * n.b(n.a(x.flip(3)))), 4,
                {"a": conv(2, 4), "n": N2(4), "b": conv(4, 4)}, {"a": ("a", "b")}),
    "used again": (again, 3, {"a": conv(2, 4), "b": conv(4, 5), "n": N2(5), "c": conv(5, 4), "p": nn.PReLU(4),
                   "d": conv(4, 3)},
                   {"a": ("a", "c"), "b": ("b",), "d": ("d",)}),
    "depthwise again": (lambda n, x: channels_mean(n.c(n.b(n.b(n.a(x)).relu()))), 3,
                        {"a": conv(2, 4), "b": conv(4, 4, groups=4), "c": conv(4, 3)}, {"a": ("a",), "c": ("c",)}),
    "channel shuffle": (lambda n, x: channels_mean(n.c(n.n(n.s(torch.cat([n.a(x), n.b(x)], 1))))), 3,
                        {"a": conv(2, 4), "b": conv(2, 4), "s": nn.ChannelShuffle(2), "n": N2(8), "c": conv(8, 3)},
                        {"a": ("a", "b"), "c": ("c",)}),
    "pixel unshuffle": (lambda n, x: channels_mean(F.channel_shuffle(torch.cat([n.u(n.b(x)), n.u(n.a(x))], 1), 2)), 24,
                        {"a": conv(2, 3), "b": conv(2, 3), "u": nn.PixelUnshuffle(2)}, {"b": ("b", "a")}),
    "gated": (gated, 3, {"a": conv(2, 8), "n": N2(8), "c": conv(4, 3)}, {"a": ("a",), "c": ("c",)}),
    "gated in groups": (lambda n, x: channels_mean(n.c(n.glu(n.p(n.g(n.b(n.a(x))))))), 3,
                        {"a": conv(2, 8), "b": conv(8, 8, groups=8), "g": nn.GroupNorm(4, 8), "p": nn.PReLU(8),
                         "glu": nn.GLU(1), "c": conv(4, 3)}, {"a": ("a",), "c": ("c",)}),
    "gated, transposed": (lambda n, x: channels_mean(n.c((y := n.b(n.a(x)).chunk(2, -3))[1] * y[0].tanh())), 3,
                          {"a": nn.ConvTranspose2d(2, 4, 3), "b": nn.ConvTranspose2d(4, 8, 3, groups=2),
                           "c": nn.ConvTranspose2d(4, 3, 1)}, {"a": ("a",), "c": ("c",)}),
    "split by size": (split_by_size, 3, {"a": conv(2, 6), "b": conv(3, 4), "d": conv(7, 3)},
                      {"a": ("a",), "b": ("b",), "d": ("d",)}),
    "split in sizes": (split_in_sizes, 3, {"a": conv(2, 4), "b": conv(2, 3), "d": conv(2, 3)}, {"b": ("b", "d")}),
    "split after a concatenation": (lambda n, x: channels_mean(n.c((y := torch.cat([n.a(x), n.b(x)], 1).chunk(2, 1))[0])
                                    * n.d(y[1])), 3,
                                    {"a": conv(2, 4), "b": conv(2, 4), "c": conv(4, 3), "d": conv(4, 3)},
                                    {"a": ("a", "b"), "c": ("c", "d")}),
    "split and joined": (lambda n, x: channels_mean(n.b(torch.cat(n.a(x).chunk(4, 1), 1))), 3,
                         {"a": conv(2, 8), "b": conv(8, 3)}, {"a": ("a",), "b": ("b",)}),
    "cross stage": (cross_stage, 3, {"a": conv(2, 8), "b": conv(4, 5), "c": conv(5, 4), "d": conv(4, 2),
                    "e": conv(2, 4), "f": conv(16, 3)},
                    {"a": ("a", "c", "e"), "b": ("b",), "d": ("d",), "f": ("f",)}),
    "sliced": (sliced, 3, {"a": conv(2, 6), "b": conv(3, 3), "c": conv(3, 3), "d": conv(3, 3)},
               {"a": ("a",), "b": ("b", "c", "d")}),
    "sliced behind the input": (lambda n, x: channels_mean(n.b(torch.cat([x, n.a(x)], 1)[:, 2:])), 3,
                                {"a": conv(2, 4), "b": conv(4, 3)}, {"a": ("a",), "b": ("b",)}),
    "shuffled by hand": (shuffled, 3, {"a": conv(2, 4), "b": conv(2, 4), "n": N2(8), "c": conv(8, 3)},
                         {"a": ("a", "b"), "c": ("c",)}),
    "one layer shuffled": (lambda n, x: channels_mean(n.c(n.s(n.b(n.a(x))))), 3,
                           {"a": conv(2, 8), "b": conv(8, 8, groups=8), "s": nn.ChannelShuffle(4), "c": conv(8, 3)},
                           {"a": ("a",), "c": ("c",)}),
    "shuffled and split": (shuffle_and_chunk, 3, {"a": conv(2, 8), "b": conv(4, 5), "c": conv(9, 3)},
                           {"a": ("a",), "b": ("b",), "c": ("c",)}),
    "selective kernels": (selective, 3, {"a": conv(2, 4), "b": conv(2, 4), "down": conv(4, 2, 1), "up": conv(2, 8, 1),
                          "c": conv(4, 3)}, {"a": ("a", "b", "up"), "down": ("down",), "c": ("c",)}),
    "maxout": (maxout, 3, {"a": conv(2, 8), "b": conv(4, 3)}, {"a": ("a",), "b": ("b",)}),
    "neighbours": (neighbours, 3, {"a": conv(2, 8), "b": conv(4, 3)}, {"a": ("a",), "b": ("b",)}),
    "pixel shuffle": (lambda n, x: channels_mean(n.b(n.s(n.p(n.n(n.a(x)))))), 3,
                      {"a": conv(2, 8), "n": N2(8), "p": nn.PReLU(8), "s": nn.PixelShuffle(2), "b": conv(2, 3)},
                      {"a": ("a",), "b": ("b",)}),
    "pixel shuffle and sum": (lambda n, x: channels_mean(n.c(F.pixel_shuffle(n.a(F.max_pool2d(x, 2)), 2) + n.b(x))), 3,
                              {"a": conv(2, 8), "b": conv(2, 2), "c": conv(2, 3)}, {"a": ("a", "b"), "c": ("c",)}),
    "gated perceptron": (gated_mixer, 4, {"stem": conv(2, 4), "norm": nn.LayerNorm(4), "a": nn.Linear(4, 12),
                         "b": nn.Linear(6, 4)}, {"a": ("a",)}),
    "read in several places": (aggregated, 3, {"a": conv(2, 4), "b": conv(4, 4), "c": conv(12, 3)},
                               {"a": ("a", "b"), "c": ("c",)}),
    "norm over the parts": (lambda n, x: n.g(torch.cat([n.a(x), n.b(x)], 1).flatten(1)), 5 * 64,
                            {"a": conv(2, 3), "b": conv(2, 2), "g": N1(5 * 64)}, {"a": ("a",), "b": ("b",)}),
}  # fmt: skip


def network(name: str) -> nn.Module:
    """The network in float64, with norm statistics and slopes that are not those of a start."""
    way, features, modules, _ = STRUCTURES[name]
    generator = torch.Generator().manual_seed(0)
    net = Wired(way, features, **copy.deepcopy(modules)).double()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.8 + 0.2)
                if tensor.dim() > 1:
                    tensor.sub_(0.6)
    return net
