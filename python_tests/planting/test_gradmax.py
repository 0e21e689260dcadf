"""GradMax: the matrix A by autograd, the maximum by comparison, the function preserved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plantops.graph import trace
from plantops.planting.check import check_function_preserving
from plantops.planting.gradmax import GradMax
from plantops.planting.plant import plant
from plantops.planting.trunk import trunk_hash
from python_tests.planting.networks import images, paper_net, planned, seeded

X = images(dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1, 2, 1, 0])


def loss_fn(logits):
    return F.cross_entropy(logits, LABELS)


def chain(activation, *, flat=False, bias=True):
    """Convolution, activation, pool, then a strided convolution or a linear layer as the reader."""
    reader = (
        [nn.Flatten(), nn.Linear(27, 4)]
        if flat
        else [nn.Conv2d(3, 4, 2, stride=2, padding=1), nn.Flatten(), nn.Linear(16, 4)]
    )
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, bias=bias), activation, nn.MaxPool2d(2), *reader).double()


def planted_with(net, init, channels):
    return plant(net, trace(net, X)["0"], channels, init)


def gradient_norm(planted):
    """Norm of the gradient of the new filters and their biases."""
    parts = [p for p in (planted[0].weight_out, planted[0].bias_out) if p is not None]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss_fn(planted(X)), parts)]).norm()


def reader_of(planted):
    return next(module for module in planted if getattr(module, "weight_in", None) is not None)


def rows_of(planted, channels):
    """The in block as one row for each new channel."""
    return reader_of(planted).weight_in.detach().unflatten(1, (channels, -1)).transpose(0, 1).flatten(1)


CASES = [
    (nn.LeakyReLU(0.3), 3, 0.0),
    (nn.Tanh(), 2, 0.0),
    (nn.ReLU(), 2, 0.1),
    (nn.ReLU(), 3, 0.1),
    (nn.Sigmoid(), 3, 0.0),
]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("activation", "channels", "bias"), CASES)
def test_gradient_is_the_largest_of_its_kind(activation, channels, bias, flat):
    net = chain(activation, flat=flat)
    planted = planted_with(net, GradMax(X, loss_fn), channels)
    assert check_function_preserving(net, planted, X) < 1e-13
    assert not planted[0].weight_out.any()
    assert torch.equal(planted[0].bias_out, torch.full((channels,), bias, dtype=torch.float64))
    best = gradient_norm(planted)
    assert best > 0

    centred = not isinstance(activation, (nn.LeakyReLU, nn.Tanh))
    rows = rows_of(planted, channels)
    old = reader_of(planted).weight.square().sum() / 3
    assert rows.square().sum() == pytest.approx(channels * float(old))
    gram = rows @ rows.T
    expected = torch.eye(channels, dtype=torch.float64) - (1 / channels if centred else 0)
    torch.testing.assert_close(gram / gram[0, 0], expected / expected[0, 0])

    generator = seeded(5)
    for _ in range(50):
        with torch.no_grad():
            _fill_with_rotated_frame(planted, rows, generator)
        assert gradient_norm(planted) <= best * (1 + 1e-9)


def _fill_with_rotated_frame(planted, rows, generator):
    """Other rows with the same Gram matrix: the competitors over which GradMax claims the maximum."""
    basis, _ = torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1], generator=generator, dtype=rows.dtype))
    reader = reader_of(planted)
    shape = (len(rows), reader.weight.shape[0], -1, *reader.weight.shape[2:])
    reader.weight_in.copy_((rows @ basis).reshape(shape).transpose(0, 1).flatten(1, 2))


def test_top_singular_value_is_what_one_channel_gets():
    """Against A computed entry by entry: one planted channel, one unit in block at a time, through autograd."""
    net = chain(nn.LeakyReLU(0.3), flat=True)
    planted = planted_with(net, GradMax(X, loss_fn, scale=2.0), 1)
    best = gradient_norm(planted)
    columns = []
    reader = reader_of(planted)
    for index in range(reader.weight_in.numel()):
        with torch.no_grad():
            reader.weight_in.zero_().view(-1)[index] = 1
        parts = [planted[0].weight_out, planted[0].bias_out]
        columns.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss_fn(planted(X)), parts)]))
    assert best == pytest.approx(2 * float(torch.linalg.matrix_norm(torch.stack(columns, 1), 2)))


def test_more_probes_than_fit_one_pass():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 4)).double()
    planted = plant(net, trace(net, X)["0"], 2, GradMax(X, loss_fn))
    best = gradient_norm(planted)
    rows = rows_of(planted, 2)
    generator = seeded(6)
    for _ in range(50):
        with torch.no_grad():
            _fill_with_rotated_frame(planted, rows, generator)
        assert gradient_norm(planted) <= best


@pytest.mark.parametrize("name", ["conv1", "conv3", "conv5", "fc1"])
def test_on_the_papers_network(name):
    net = paper_net().train()
    site = planned(net)[name]
    state, before = torch.get_rng_state(), trunk_hash(net)
    init = GradMax(images(), loss_fn)
    first, second = (plant(net, site, 2, init, generator=seeded(seed)) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert trunk_hash(net) == trunk_hash(first) == before
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    check_function_preserving(net, first, images())
    assert plant(net, site, 2, init, inplace=True) is net


def test_mistakes():
    net, normed = paper_net(), paper_net(batch_norm=True)
    init = GradMax(images(), loss_fn)
    with pytest.raises(ValueError, match="GradMax cannot start conv2: the norm bn2 would rescale"):
        plant(normed, planned(normed)["conv2"], 2, init)
    with pytest.raises(ValueError, match="needs at least 2 channels at conv2, got 1"):
        plant(net, planned(net)["conv2"], 1, init)
    with pytest.raises(ValueError, match="can start at most 20 channels at conv1, got 21"):
        plant(net, planned(net)["conv1"], 21, init)
    with pytest.raises(ValueError, match="GradMax needs a bias in 0"):
        planted_with(chain(nn.ReLU(), bias=False), GradMax(X, loss_fn), 2)
    with pytest.raises(ValueError, match="finds no gradient for new channels at 0"):
        planted_with(chain(nn.Hardshrink()), GradMax(X, loss_fn), 2)
    for arguments in ({"scale": 0.0}, {"scale": float("nan")}, {"bias": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be a positive number"):
            GradMax(X, loss_fn, **arguments)


def test_a_failing_loss_leaves_an_inplace_model_as_it_was():
    net = paper_net()

    def broken(logits):
        raise RuntimeError("no labels")

    with pytest.raises(RuntimeError, match="no labels"):
        plant(net, planned(net)["conv2"], 2, GradMax(images(), broken), inplace=True)
    assert type(net.conv2) is nn.Conv2d
    assert all(parameter.requires_grad for parameter in net.parameters())
