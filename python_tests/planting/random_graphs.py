"""Random networks from a list of whole numbers, and the shortest such list that still fails."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3
LENGTH = 160


class Choices:
    """Numbers drawn one after the other; 0, the plainest choice, when they are used up."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = iter(numbers)

    def below(self, count: int) -> int:
        return next(self._numbers, 0) % count

    def of(self, *values: Any) -> Any:
        return values[self.below(len(values))]


class Step:
    """What is done to earlier values, in words and as a function of the network and these values."""

    def __init__(self, text: str, run: Callable[..., Tensor], *reads: int) -> None:
        self.text, self.run, self.reads = text, run, reads


class Net(nn.Module):
    """Steps over a list of values, of which the image is the first; a linear head reads the last."""

    def __init__(self, steps: list[Step], layers: dict[str, nn.Module], head: nn.Module, flat: bool) -> None:
        super().__init__()
        self.steps, self.layers, self.head, self.flat = steps, nn.ModuleDict(layers), head, flat

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self.steps:
            values.append(step.run(self.layers, *(values[place] for place in step.reads)))
        last = values[-1]
        return self.head(last.flatten(1) if self.flat else last.mean((2, 3)))

    def __str__(self) -> str:
        return "\n".join(f"{place + 1} = {step.text} of {list(step.reads)}" for place, step in enumerate(self.steps))


class Build:
    """A network in the making: its steps and layers, and the shape of every value."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.steps: list[Step] = []
        self.layers: dict[str, nn.Module] = {}
        self.shapes: list[tuple[int, int]] = [(choices.of(2, 3, 4), choices.of(8, 7, 9))]
        for _ in range(2 + choices.below(7)):
            self.grow()

    def add(self, text: str, run: Callable[..., Tensor], channels: int, size: int, *reads: int) -> int:
        self.steps.append(Step(text, run, *reads))
        self.shapes.append((channels, size))
        return len(self.steps)

    def layer(self, module: nn.Module, channels: int, size: int, read: int) -> int:
        name = f"l{len(self.layers)}"
        self.layers[name] = module
        return self.add(f"{name} {module}", lambda layers, x: layers[name](x), channels, size, read)

    def conv(self, read: int, channels: int | None = None, plain: bool = False) -> int:
        """A convolution of odd geometry; ``plain``: that keeps the size."""
        own, size = self.shapes[read]
        choose = self.choices
        channels = choose.of(4, 3, 6, 2, 5, 1) if channels is None else channels
        if plain:
            return self.layer(nn.Conv2d(own, channels, 3, padding=1, bias=choose.of(True, False)), channels, size, read)
        kernel, stride, dilation = choose.of(3, 1, 2, 4), choose.of(1, 2), choose.of(1, 1, 2)
        padding = choose.below(kernel)
        mode = choose.of("zeros", "zeros", "replicate", "circular")
        out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if out < 2 or padding > size:
            kernel, stride, dilation, padding, out = 1, 1, 1, 0, size
        conv = nn.Conv2d(
            own, channels, kernel, stride, padding, dilation, bias=choose.of(True, False), padding_mode=mode
        )
        return self.layer(conv, channels, out, read)

    def any(self) -> int:
        """The newest value, or an older one."""
        return len(self.shapes) - 1 - self.choices.of(0, 0, 0, 1, 2) % len(self.shapes)

    def grow(self) -> None:
        kinds = (
            self.conv_norm_act, self.residual, self.concat, self.split, self.gate, self.twice, self.depthwise,
            self.transposed, self.pixels, self.perceptron, self.pool, self.slices, self.sum,
        )  # fmt: skip
        kinds[self.choices.below(len(kinds))]()

    def norm(self, read: int) -> int:
        channels, size = self.shapes[read]
        if size < 3:  # of a few values, or one, a norm leaves nothing to learn from
            return read
        groups = self.choices.of(*(count for count in range(1, channels + 1) if channels % count == 0))
        module = self.choices.of(
            None, nn.BatchNorm2d(channels), nn.GroupNorm(groups, channels), nn.InstanceNorm2d(channels, affine=True),
            nn.BatchNorm2d(channels, affine=False), nn.InstanceNorm2d(channels), nn.GroupNorm(channels, channels),
        )  # fmt: skip
        return read if module is None else self.layer(module, channels, size, read)

    def act(self, read: int) -> int:
        channels, size = self.shapes[read]
        module = self.choices.of(
            nn.ReLU(),
            nn.GELU(),
            nn.PReLU(channels),
            nn.SiLU(),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.PReLU(),
            None,
        )
        if module is None:
            return self.add("relu", lambda layers, x: F.relu(x), channels, size, read)
        return self.layer(module, channels, size, read)

    def conv_norm_act(self) -> None:
        self.act(self.norm(self.conv(self.any())))

    def residual(self) -> None:
        read = self.any()
        channels, size = self.shapes[read]
        inner = self.conv(self.act(self.norm(self.conv(read, plain=True))), channels, plain=True)
        self.act(self.add("add", lambda layers, x, y: x + y, channels, size, read, inner))

    def alike(self, first: int, second: int) -> tuple[int, int]:
        """Both at the smaller size."""
        size = min(self.shapes[first][1], self.shapes[second][1])
        found = []
        for read in (first, second):
            if self.shapes[read][1] != size:
                name = f"adaptive_avg_pool2d to {size}"
                run = lambda layers, x, size=size: F.adaptive_avg_pool2d(x, size)  # noqa: E731
                read = self.add(name, run, self.shapes[read][0], size, read)
            found.append(read)
        return found[0], found[1]

    def concat(self) -> None:
        first, second = self.alike(self.any(), self.conv(self.any()))
        channels = self.shapes[first][0] + self.shapes[second][0]
        self.add("cat", lambda layers, x, y: torch.cat([x, y], 1), channels, self.shapes[first][1], first, second)

    def sum(self) -> None:
        first, second = self.alike(self.conv(self.any(), 4), self.conv(self.any(), 4))
        run = self.choices.of(lambda layers, x, y: x + y, lambda layers, x, y: x * y.sigmoid())
        self.add("joined", run, 4, self.shapes[first][1], first, second)

    def split(self) -> None:
        read = self.norm(self.conv(self.any(), self.choices.of(4, 2, 6)))
        channels, size = self.shapes[read]

        def gated(layers: nn.ModuleDict, x: Tensor) -> Tensor:
            p, q = x.chunk(2, 1)
            return p * q.sigmoid()

        self.add("gated halves", gated, channels // 2, size, read)

    def slices(self) -> None:
        read = self.conv(self.any(), self.choices.of(4, 6))
        channels, size = self.shapes[read]

        def swapped(layers: nn.ModuleDict, x: Tensor) -> Tensor:
            half = x.shape[1] // 2
            return torch.cat([x[:, half:], x[:, :half].relu()], 1)

        self.add("swapped halves", swapped, channels, size, read)

    def gate(self) -> None:
        read = self.conv(self.any())
        channels, size = self.shapes[read]
        pooled = self.add("mean", lambda layers, x: x.mean((2, 3), keepdim=True), channels, 1, read)
        down = self.layer(nn.Conv2d(channels, 2, 1), 2, 1, pooled)
        up = self.layer(nn.Conv2d(2, channels, 1), channels, 1, self.act(down))
        self.add("gate", lambda layers, x, y: x * torch.sigmoid(y), channels, size, read, up)

    def twice(self) -> None:
        """The same block two times."""
        read = self.any()
        channels, size = self.shapes[read]
        inner = self.conv(read, channels, plain=True)
        name = f"l{len(self.layers) - 1}"
        run = self.choices.of(lambda layers, x: layers[name](x).relu(), lambda layers, x: x + layers[name](x))
        self.add(f"{name} again", run, channels, size, inner)

    def depthwise(self) -> None:
        read = self.conv(self.any(), self.choices.of(4, 6))
        channels, size = self.shapes[read]
        groups, times = self.choices.of(channels, channels // 2), self.choices.of(1, 2)
        stride = self.choices.of(1, 2)
        conv = nn.Conv2d(channels, channels * times, 3, stride, 1, groups=groups)
        self.act(self.norm(self.layer(conv, channels * times, (size - 1) // stride + 1, read)))

    def transposed(self) -> None:
        read = self.any()
        channels, size = self.shapes[read]
        kernel, stride = self.choices.of(2, 3), self.choices.of(2, 1)
        conv = nn.ConvTranspose2d(channels, 3, kernel, stride, bias=self.choices.of(True, False))
        up = self.layer(conv, 3, (size - 1) * stride + kernel, read)
        self.alike(self.norm(up), read)

    def pixels(self) -> None:
        read = self.conv(self.any(), self.choices.of(4, 8))
        channels, size = self.shapes[read]
        self.layer(nn.PixelShuffle(2), channels // 4, size * 2, read)

    def perceptron(self) -> None:
        read = self.any()
        channels, size = self.shapes[read]
        at = len(self.layers)
        self.layers[f"l{at}"], self.layers[f"l{at + 1}"] = nn.Linear(channels, 5), nn.Linear(5, channels)

        def run(layers: nn.ModuleDict, x: Tensor) -> Tensor:
            y = layers[f"l{at + 1}"](F.gelu(layers[f"l{at}"](x.permute(0, 2, 3, 1))))
            return x + y.permute(0, 3, 1, 2)

        self.add(f"perceptron l{at}", run, channels, size, read)

    def pool(self) -> None:
        read = self.any()
        channels, size = self.shapes[read]
        if size < 4:
            return
        module = self.choices.of(nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1))
        out = {2: size // 2}.get(module.stride if module.kernel_size == 2 else 0, (size - 1) // 2 + 1)
        self.layer(module, channels, size - 1 if module.stride == 1 else out, read)


def random_choices(seed: int) -> list[int]:
    own = random.Random(seed)
    return [own.randrange(1 << 16) for _ in range(LENGTH)]


def random_network(choices: list[int]) -> tuple[Net, Tensor]:
    """A float64 network, and five images for it."""
    chosen = Choices(choices)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        build = Build(chosen)
        channels, size = build.shapes[-1]
        flat = chosen.of(False, True)
        net = Net(build.steps, build.layers, nn.Linear(channels * size * size if flat else channels, CLASSES), flat)
        for module in net.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        images = torch.randn(5, *build.shapes[0][:1], build.shapes[0][1], build.shapes[0][1], dtype=torch.float64)
    return net.double(), images


def shrunk(choices: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """A shorter, plainer list that ``fails``, too: parts are left out, numbers become smaller. 400 tries at most."""
    tries = itertools.count()

    def still(shorter: list[int]) -> bool:
        return next(tries) < 400 and fails(shorter)

    size = len(choices)
    while size:
        for begin in range(0, len(choices), size):
            shorter = choices[:begin] + choices[begin + size :]
            if len(shorter) < len(choices) and still(shorter):
                choices = shorter
        size //= 2
    for place, number in enumerate(choices):
        for smaller in range(min(number, 13)):
            plainer = [*choices[:place], smaller, *choices[place + 1 :]]
            if still(plainer):
                choices = plainer
                break
    return choices
