"""Wide residual networks: published sizes, the published block, and that they can grow."""

import pytest
import torch
import torch.nn.functional as F

from plantops.graph import trace
from plantops.models import WideResNet, count_parameters, wide_resnet
from plantops.models.wide_resnet import WideBlock

# Millions of parameters on CIFAR-100 (Xu, Hsu, Huang, arXiv 1709.00513).
PUBLISHED = {
    (10, 2): 0.32, (10, 4): 1.22, (10, 6): 2.72, (10, 8): 4.81, (10, 10): 7.49, (16, 4): 2.77, (22, 4): 4.32,
    (28, 4): 5.87, (34, 4): 7.42, (40, 10): 55.9,
}  # fmt: skip


@pytest.mark.parametrize(("depth", "factor"), PUBLISHED)
def test_published_parameter_counts(depth: int, factor: int) -> None:
    with torch.device("meta"):
        count = count_parameters(WideResNet(depth, factor, 100))
    published = PUBLISHED[depth, factor]
    assert round(count / 1e6, 1 if published > 10 else 2) == published


@pytest.mark.parametrize("stride", [1, 2])
def test_block_by_the_formula(stride: int) -> None:
    block = WideBlock(4, 4 * stride, stride).double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    active = (x / (1 + 1e-5) ** 0.5).relu()
    passed = x if block.shortcut is None else F.conv2d(active, block.shortcut.weight, stride=stride)
    inner = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
    expected = passed + F.conv2d((inner / (1 + 1e-5) ** 0.5).relu(), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), expected)
    assert (block.shortcut is None) == (stride == 1)


def test_shapes_and_sites() -> None:
    net = wide_resnet(10, 1)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    plan = trace(net, torch.zeros(2, 3, 32, 32))
    assert set(plan.refusals) == {"fc"}
    assert [site.width for site in plan.values()] == [16, 16, 32, 32, 64, 64]


def test_errors() -> None:
    for depth in (4, 11):
        with pytest.raises(ValueError, match=rf"depth must be 10, 16, 22, ... \(6 n \+ 4\), got {depth}"):
            wide_resnet(depth, 2)
    with pytest.raises(ValueError, match="factor must be at least 1, got 0"):
        wide_resnet(10, 0)
