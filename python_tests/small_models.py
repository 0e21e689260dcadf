"""Factories for the command line's ``--model package.module:factory``."""

from torch import nn


class Residual(nn.Module):
    """A residual block with grouped channels inside, between a stem and a linear layer."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.mixed = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.out, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.fc((x + self.out(self.mixed(self.inner(x)).relu())).mean((2, 3)))


def small(num_classes: int, in_channels: int) -> nn.Module:
    return Residual(num_classes, in_channels)


def wrong() -> nn.Module:
    return nn.Flatten()
