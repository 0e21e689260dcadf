"""Sites of chains: who is read by whom, what a channel costs, and that tracing leaves no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plantops.graph import Consumer, Output, Plan, trace
from plantops.models import PlantingNet, count_macs, count_parameters, planting_net


def net_of(widths, **options):
    return PlantingNet(widths, 3, in_channels=2, image_size=8, fc_width=6, **options)


def sequential(*modules, size=(2, 3, 8, 8)):
    return trace(nn.Sequential(*modules), torch.zeros(size))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_papers_network(batch_norm):
    net, x = planting_net("cifar10", (8, 7, 6, 5, 4), batch_norm=batch_norm), torch.zeros(2, 3, 32, 32)
    assert list(trace(net, x)) == [*(f"conv{i}" for i in range(1, 6)), "fc1"]
    plan = trace(net, x, grow_linear=False)
    assert list(plan) == [f"conv{i}" for i in range(1, 6)]
    assert [site.width for site in plan.values()] == [8, 7, 6, 5, 4]
    assert [site.norms for site in plan.values()] == [(f"bn{i}",) if batch_norm else () for i in range(1, 6)]
    assert plan["conv2"].passes == ("relu", "pool")
    assert plan["conv3"].passes == ("relu",)
    assert plan["conv5"].passes == ("relu", "pool", "flatten")
    assert plan["conv4"].consumers == (Consumer("conv5", 0, 1, 5),)
    assert plan["conv5"].consumers == (Consumer("fc1", 0, 16, 64),)
    assert (plan["conv1"].value_at_zero, plan["conv1"].slope_at_zero) == (0.0, 0.0)
    assert set(plan.refusals) == {"fc1", "fc2"}
    assert "grow_linear=False" in plan.refusals["fc1"]
    assert plan.refusals["fc2"] == "its channels are the model's output"


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("layer", range(5))
def test_costs_are_the_difference_that_one_channel_makes(layer, batch_norm):
    widths = [3, 4, 2, 5, 3]
    wider = [width + (index == layer) for index, width in enumerate(widths)]
    small, large = (net_of(w, batch_norm=batch_norm) for w in (widths, wider))
    site = trace(small, torch.zeros(5, 2, 8, 8))[f"conv{layer + 1}"]
    assert site.parameters_per_channel == count_parameters(large) - count_parameters(small)
    assert site.macs_per_channel == count_macs(large, (2, 8, 8)) - count_macs(small, (2, 8, 8))


def test_costs_of_a_linear_site():
    plan = trace(net_of([2] * 5), torch.zeros(1, 2, 8, 8))
    assert (plan["fc1"].width, plan["fc1"].consumers) == (6, (Consumer("fc2", 0, 1, 6),))
    assert plan["fc1"].parameters_per_channel == 2 + 1 + 3
    assert plan["fc1"].macs_per_channel == 2 + 3


def test_strides_kernels_and_tokens_count_positions():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.act, self.down = nn.Linear(4, 8, bias=False), nn.GELU(), nn.Linear(8, 4)

        def forward(self, x):
            return x + self.down(self.act(self.up(x)))

    site = trace(Tokens(), torch.zeros(2, 5, 4))["up"]
    assert site.macs_per_channel == 5 * (4 + 4)
    assert site.parameters_per_channel == 8
    assert site.slope_at_zero == pytest.approx(0.5)
    plan = sequential(nn.Conv2d(3, 4, (3, 1), stride=2, dilation=2), nn.Conv2d(4, 5, 2, bias=False))
    assert plan["0"].macs_per_channel == 2 * 4 * 9 + 1 * 3 * 5 * 4
    assert plan["0"].parameters_per_channel == 9 + 1 + 20


FLATTENS = {
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: x.flatten(start_dim=1),
    "size": lambda x: x.view(x.size(0), -1),
    "size keyword": lambda x: x.reshape(x.size(dim=0), -1),
    "shape": lambda x: x.reshape(x.shape[0], -1),
    "tuple": lambda x: x.contiguous().view((x.size()[0], -1)),
    "torch.reshape": lambda x: torch.reshape(x, (x.shape[0], -1)),
    "twice": lambda x: torch.flatten(x, 1).flatten(1),
}


class Head(nn.Module):
    """A convolution whose output reaches a linear layer through ``between``."""

    def __init__(self, between, features=4 * 36, **modules):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.between = between
        self.fc = nn.Linear(features, 2)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        x = self.conv(x)
        x = self.between(self, x) if self.between.__code__.co_argcount == 2 else self.between(x)
        return self.fc(x)


@pytest.mark.parametrize("spelling", FLATTENS)
def test_flatten_in_every_spelling(spelling):
    plan = trace(Head(FLATTENS[spelling]), torch.zeros(2, 3, 8, 8))
    assert plan["conv"].consumers == (Consumer("fc", 0, 36, 144),)
    assert plan["conv"].parameters_per_channel == 27 + 1 + 2 * 36


def test_global_means():
    for mean in (
        lambda x: x.mean((2, 3)),
        lambda x: torch.mean(x, dim=[-1, -2]),
        lambda x: x.mean((2, 3), True).flatten(1),
    ):
        plan = trace(Head(mean, features=4), torch.zeros(2, 3, 8, 8))
        assert plan["conv"].consumers == (Consumer("fc", 0, 1, 4),)


def test_functions_on_the_way():
    def way(x):
        x = F.max_pool2d(F.relu(x), 2)
        x = F.adaptive_avg_pool2d(F.avg_pool2d(torch.tanh(x) * 0.5 + 1, 1), (1, 1))
        return x.relu().clamp(-1, 3).flatten(1)

    site = trace(Head(way, features=4), torch.zeros(2, 3, 8, 8))["conv"]
    assert site.consumers == (Consumer("fc", 0, 1, 4),)
    assert site.value_at_zero == 1.0
    assert site.slope_at_zero == 0.0


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_kind_of_padding_can_grow():
    same = nn.Conv2d(3, 4, 4, padding="same")
    plan = sequential(same, nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"), nn.Conv2d(5, 2, 1, padding="valid"))
    assert list(plan) == ["0", "1"]
    assert plan["0"].macs_per_channel == 64 * (16 * 3 + 9 * 5)


@pytest.mark.parametrize(
    ("activation", "value", "slope"),
    [
        (nn.ReLU(inplace=True), 0, 0),
        (nn.LeakyReLU(0.2), 0, 0.2),
        (nn.PReLU(init=0.3), 0, 0.3),
        (nn.GELU(), 0, 0.5),
        (nn.SiLU(), 0, 0.5),
        (nn.Sigmoid(), 0.5, 0.25),
        (nn.Hardshrink(), 0, 0),
        (nn.Identity(), 0, 1),
    ],
)
def test_value_and_slope_at_zero(activation, value, slope):
    site = sequential(nn.Conv2d(3, 4, 3), activation, nn.Dropout(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))["0"]
    assert site.value_at_zero == pytest.approx(value)
    assert site.slope_at_zero == pytest.approx(slope)


def test_only_what_follows_the_last_norm_counts_at_zero():
    plan = sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    assert (plan["0"].value_at_zero, plan["0"].slope_at_zero) == (0, 1)


class Stage(nn.Module):
    """YOLO's block of two halves, written with a list that no plain torch.fx proxy can be turned into."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        parts = list(self.a(x).chunk(2, 1))
        parts.append(parts[-1] + self.b(parts[-1]))
        return self.c(torch.cat(parts, 1))


def test_parts_and_their_costs():
    plan = trace(Stage(), torch.zeros(1, 3, 8, 8))
    site = plan["a"]
    assert site.producers == ("a", "b")
    assert site.outputs == (Output(8, 2, 1), Output(4, 1, 1))
    assert site.multiple == 2
    assert site.consumers == tuple(
        Consumer(n, s, 1, w) for n, s, w in (("b", 0, 4), ("c", 0, 12), ("c", 4, 12), ("c", 8, 12))
    )
    assert site.planted_outputs("a", 6) == [(4, 3), (8, 3)]
    assert site.planted_outputs("b", 6) == [(4, 3)]
    assert [site.planted_start(reader) for reader in site.consumers] == [4, 4, 8, 12]
    # Two filters of a and one of b with biases, an input of b (for 5 filters), three of c: half of it for one channel.
    assert site.parameters_per_channel == round((2 * 4 + 5 + 5 + 3 * 2) / 2)
    assert site.block(1) == [1, 5]
    assert site.block(1, "b") == [1]
    assert Plan.from_json(plan.to_json()) == plan


def test_norms_of_flat_features():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 2))
    site = trace(model, torch.zeros(2, 3))["0"]
    assert site.norms == ("1",)
    assert site.parameters_per_channel == 3 + 1 + 2
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 2))
    site = trace(model, torch.zeros(2, 3, 8, 8))["0"]
    assert site.norms == ("2",)
    assert site.parameters_per_channel == 28 + 2 * 36 + 2 * 36


def test_defaults_and_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x, y, scale=None, flag=True):
            x = self.b(self.a(x))
            if scale is not None:
                x = x * scale
            return x + y if flag else x

    assert list(trace(Two(), (torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4)))) == ["a"]


def test_tracing_leaves_the_model_as_it_was():
    seen = []
    model = net_of([2, 3, 4, 3, 2], batch_norm=True)
    model.fc1 = nn.Sequential(nn.Dropout(0.5), model.fc1)
    model.bn2.eval()
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    model.register_forward_hook(lambda *_: seen.append("root"))
    model.conv2.register_forward_pre_hook(lambda *_: seen.append("conv2"))
    model.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    versions = [tensor._version for tensor in model.state_dict().values()]
    hooks = len(model._forward_hooks), len(model.conv2._forward_pre_hooks)
    generator = torch.get_rng_state()

    plan = trace(model, torch.zeros(2, 2, 8, 8))

    torch.testing.assert_close(plan["conv5"].consumers, (Consumer("fc1.1", 0, 1, 2),))
    assert seen == []
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert [tensor._version for tensor in model.state_dict().values()] == versions
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (len(model._forward_hooks), len(model.conv2._forward_pre_hooks)) == hooks
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))


def test_random_forwards_draw_nothing():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(self.a(x + torch.randn(1)))

    model = Noisy()
    state = torch.get_rng_state()
    trace(model, torch.zeros(1, 3, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)
