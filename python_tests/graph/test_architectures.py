"""Small members of well-known families, built here: traced, sites found, and growing them keeps every promise."""

import time

import pytest
import torch

from plantops.graph import trace
from plantops.planting.verify import verify
from python_tests.pairs import mostly_exhaustive

torchvision = pytest.importorskip("torchvision")
models = torchvision.models


def light(build):
    """A network with a classifier of few features in the place of a huge one, without ever making that."""
    with torch.device("meta"):
        model = build()
        linears = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        for at, (name, linear) in enumerate(linears):
            parent, _, key = name.rpartition(".")
            outputs = 4 if at == len(linears) - 1 else 16
            wide = linear.in_features if at == 0 else 16
            setattr(model.get_submodule(parent), key, torch.nn.Linear(wide, outputs))
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dim() > 1:
                torch.nn.init.kaiming_normal_(tensor)
            else:
                tensor.fill_(0.5)
    return model


# Builder, side of the image, least number of sites.
ARCHITECTURES = {
    "alexnet": (lambda: light(models.alexnet), 64, 7),
    "vgg11": (lambda: light(models.vgg11), 32, 10),
    "vgg11_bn": (lambda: light(models.vgg11_bn), 32, 10),
    "resnet18": (lambda: models.resnet18(num_classes=4), 32, 12),
    "resnet bottleneck": (lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=4), 32, 13),
    "resnext": (
        lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=4, groups=8, width_per_group=8),
        32,
        9,
    ),
    "densenet": (
        lambda: models.DenseNet(growth_rate=4, block_config=(2, 2, 2), num_init_features=8, num_classes=4),
        32,
        15,
    ),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=4), 32, 25),
    "googlenet": (lambda: light(lambda: models.googlenet(aux_logits=False, init_weights=False)), 32, 57),
    "inception": (lambda: light(lambda: models.inception_v3(aux_logits=False, init_weights=False)), 80, 94),
    "mobilenet v2": (lambda: models.mobilenet_v2(num_classes=4, width_mult=0.25), 32, 24),
    "mobilenet v3": (lambda: models.mobilenet_v3_small(num_classes=4), 32, 26),
    "mnasnet": (lambda: models.MNASNet(0.25, num_classes=4), 32, 20),
    "shufflenet v2": (lambda: models.shufflenet_v2_x0_5(num_classes=4), 32, 16),
    "efficientnet": (lambda: models.efficientnet_b0(num_classes=4), 32, 40),
    "regnet": (lambda: models.regnet_y_400mf(num_classes=4), 32, 30),
    "convnext": (
        lambda: models.ConvNeXt(
            [models.convnext.CNBlockConfig(8, 16, 2), models.convnext.CNBlockConfig(16, None, 2)], 0.1, num_classes=4
        ), 32, 4,
    ),
    "vision transformer": (lambda: models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4), 16, 2),
    "swin": (lambda: models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=4), 32, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", mostly_exhaustive(ARCHITECTURES, ("resnet18", "shufflenet v2", "vision transformer")))
def test_architecture(name):
    build, side, least = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no norm that starts at 0 and lets no gradient through
            if not parameter.any():
                parameter.uniform_(0.1, 0.9)
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    plan = trace(model, x)
    assert len(plan) >= least, str(plan)
    layers = {n for n, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))}
    assert layers == {n for n in layers if n in plan} | set(plan.refusals)
    sites = list(plan.values())
    tried = [sites[len(sites) // 2], sites[-1]]
    assert verify(model, tried, x) == {site.name: None for site in tried}


@pytest.mark.parametrize(("name", "sites", "limit"), [("resnet50", 37, 5), ("densenet121", 120, 10)])
def test_tracing_takes_seconds(name, sites, limit, capsys):
    """Of one core's time, at full size, without the verification of the sites."""
    with torch.device("meta"):
        model = getattr(models, name)()
    model, x = model.to_empty(device="cpu"), torch.zeros(1, 3, 224, 224)
    start = time.process_time()
    plan = trace(model, x)
    seconds = time.process_time() - start
    with capsys.disabled():
        print(f"\n{name}: {len(plan)} sites traced in {seconds:.2f} s of processor time")
    assert len(plan) == sites
    assert seconds < limit
