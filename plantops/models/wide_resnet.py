"""Wide residual networks, the teacher and students on which adversarial distillation was published.

Source: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146; widths and counts as in Xu, Hsu,
Huang, arXiv 1709.00513.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from plantops.errors import ArgumentError


class WideBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU before each, added to the input.

    Where width or stride change, the input is the activated one, through a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        active = F.relu(self.bn1(input))
        passed = input if self.shortcut is None else self.shortcut(active)
        return passed + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideResNet(nn.Module):
    """WRN-``depth``-``factor``: a 3x3 stem of 16 filters, three stages of (depth - 4) / 6 blocks, a linear head.

    The stages are 16, 32 and 64 times ``factor`` filters wide; the second and the third halve height and width. Batch
    norm, ReLU and the mean over all positions come before the head. Convolutions have no bias.

    Args:
        depth: 6 n + 4, counting convolutions but those on shortcuts, and the head.
        factor: the widening factor, at least 1.
        num_classes: number of logits.
        in_channels: channels of the image.

    Shapes: ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Initial weights: Kaiming normal for the fan out (convolutions), torch's own for the head, from torch's global
    generator.

    Raises:
        ValueError: a depth that is not 6 n + 4 (n at least 1), a factor or a count below 1.
    """

    def __init__(self, depth: int, factor: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ArgumentError(f"depth must be 10, 16, 22, ... (6 n + 4), got {depth}")
        for name, value in (("factor", factor), ("num_classes", num_classes), ("in_channels", in_channels)):
            if value < 1:
                raise ArgumentError(f"{name} must be at least 1, got {value}")
        self.depth, self.factor = depth, factor
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        width = 16
        stages = []
        for stage in range(3):
            outputs = (16 << stage) * factor
            blocks = []
            for block in range((depth - 4) // 6):
                blocks.append(WideBlock(width, outputs, 2 if stage and not block else 1))
                width = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, input: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = F.relu(self.bn(self.stages(self.stem(input))))
        return self.fc(x.mean((2, 3)))


def wide_resnet(depth: int, factor: int, num_classes: int = 10) -> WideResNet:
    """WRN-``depth``-``factor`` for RGB images, as published for CIFAR."""
    return WideResNet(depth, factor, num_classes)
