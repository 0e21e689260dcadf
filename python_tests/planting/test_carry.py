"""carry_state: what an optimizer or an average knows of a model is known of the grown one, slice by slice."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import plantops
from plantops import carry_state, merge, plant
from plantops.graph import trace
from plantops.planting.check import check_function_preserving
from plantops.planting.trunk import planted_parameters, trunk_state
from python_tests.planting.networks import seeded
from python_tests.planting.structures import network

X = torch.randn(4, 2, 8, 8, generator=seeded(3), dtype=torch.float64)
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, weight_decay=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2, betas=(0.8, 0.95), amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, 1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, initial_accumulator_value=0.25),
}
KEYS = {
    "SGD": {"momentum_buffer"},
    "Adam": {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "AdamW": {"exp_avg", "exp_avg_sq"},
    "NAdam": {"exp_avg", "exp_avg_sq"},
    "RMSprop": {"square_avg", "momentum_buffer", "grad_avg"},
    "Adagrad": {"sum"},
}


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def factors(kind, entries, block, optimizer):
    """By which factor each average of a planted block is scaled: its corrected value stays."""
    if kind not in ("Adam", "AdamW", "NAdam"):
        return dict.fromkeys(KEYS[kind], 1.0)
    (b1, b2), old, new = optimizer.param_groups[0]["betas"], float(entries["step"]), float(block["step"])
    first, second = (1 - b1**old) / (1 - b1**new), (1 - b2**old) / (1 - b2**new)
    if kind == "NAdam":
        first = (1 - float(entries["mu_product"])) / (1 - float(block["mu_product"]))
    return {"exp_avg": first, "exp_avg_sq": second, "max_exp_avg_sq": second}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_slices_keep_or_bring_their_state(kind):
    """A producer, its norm, and a consumer that reads the planted channels in the middle of its input."""
    net = network("dense").train()
    optimizer = OPTIMIZERS[kind](net.parameters())
    train(net, optimizer, 3)
    old = {name: dict(optimizer.state[p]) for name, p in net.named_parameters()}
    site = trace(net, X)["c0"]
    planted = plant(net, site, 2, "kaiming", generator=seeded(1))
    blocks = OPTIMIZERS[kind](planted_parameters(planted))
    train(planted, blocks, 2)
    merged = merge(planted)
    assert carry_state(optimizer, planted, merged, blocks) is optimizer

    parameters = dict(merged.named_parameters())
    assert optimizer.param_groups[0]["params"] == list(parameters.values())
    assert set(optimizer.state) == set(parameters.values())
    own = dict(planted.named_parameters())
    for name, new in parameters.items():
        entries, before = optimizer.state[new], old[name]
        assert entries.get("step") == before.get("step")
        tensors = {key for key, value in entries.items() if torch.is_tensor(value) and value.dim()}
        assert tensors == KEYS[kind]
        module, _, leaf = name.rpartition(".")
        out, into = (own.get(f"{module}.{leaf}_{side}") for side in ("out", "in"))
        start = {"n1": 4, "c1": 4, "n2": 4, "c2": 4, "fc": 4}.get(module)
        for key in tensors:
            value = entries[key]
            assert value.shape == new.shape
            if into is not None:  # c1, c2, fc: old inputs, planted inputs, old inputs behind them
                scaled = blocks.state[into][key] * factors(kind, before, blocks.state[into], optimizer)[key]
                assert torch.equal(value[:, start : start + 2], scaled)
                assert torch.equal(torch.cat([value[:, :start], value[:, start + 2 :]], 1), before[key])
            elif out is not None:
                first = before[key].shape[0] if start is None else start
                scaled = blocks.state[out][key] * factors(kind, before, blocks.state[out], optimizer)[key]
                assert torch.equal(value[first : first + 2], scaled)
                assert torch.equal(torch.cat([value[:first], value[first + 2 :]]), before[key])
            else:
                assert torch.equal(value, before[key])
    train(merged, optimizer, 1)
    assert all(not torch.equal(a, b) for a, b in zip(parameters.values(), merge(planted).parameters(), strict=True))


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adagrad"])
def test_slices_that_nothing_trained_begin_as_in_a_new_optimizer(kind):
    net = network("residual").train()
    optimizer = OPTIMIZERS[kind](net.parameters())
    train(net, optimizer, 2)
    planted = plant(net, trace(net, X)["c1"], 3)
    merged = carry_over = merge(planted)
    carry_state(optimizer, planted, carry_over)
    for key in KEYS[kind]:
        value = optimizer.state[merged.c1.weight][key]
        assert value[:5].any()
        assert torch.equal(value[5:], torch.full_like(value[5:], 0.25 if kind == "Adagrad" else 0.0))
        assert torch.equal(optimizer.state[merged.c2.weight][key][:, 5:].unique(), value[5:].unique())


def test_one_optimizer_over_everything_with_groups_schedule_and_foreign_parameters():
    net = network("residual").train()
    foreign = nn.Parameter(torch.ones(3, dtype=torch.float64))
    decay = [(n, p) for n, p in net.named_parameters() if p.dim() > 1]
    rest = [(n, p) for n, p in net.named_parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "lr": 0.5}], 0.1, momentum=0.9
    )
    optimizer.add_param_group({"params": [("temperature", foreign)]})
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(net, optimizer, 1)
    planted = plant(net, trace(net, X)["c1"], 3)
    blocks = [(n, p) for n, p in planted.named_parameters() if p.requires_grad]
    optimizer.add_param_group({"params": blocks, "lr": 0.3})
    schedule.base_lrs.append(0.3)
    train(planted, optimizer, 1)
    brought = optimizer.state[planted.c1.weight_out]["momentum_buffer"].clone()
    merged = merge(planted)
    carry_state(optimizer, planted, merged)
    names = {id(p): n for n, p in merged.named_parameters()}
    assert [[names.get(id(p), "temperature") for p in group["params"]] for group in optimizer.param_groups] == [
        [n for n, _ in decay], [n for n, _ in rest], ["temperature"], []
    ]  # fmt: skip
    assert [group["param_names"] for group in optimizer.param_groups][:3] == [
        [n for n, _ in decay], [n for n, _ in rest], ["temperature"]
    ]  # fmt: skip
    assert torch.equal(optimizer.state[merged.c1.weight]["momentum_buffer"][5:], brought)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.25, 0.05, 0.15]
    train(merged, optimizer, 2)


def test_only_the_blocks_were_optimised():
    net = network("residual").train()
    planted = plant(net, trace(net, X)["c1"], 3)
    optimizer = OPTIMIZERS["Adam"](planted_parameters(planted))
    train(planted, optimizer, 2)
    moments = optimizer.state[planted.c1.weight_out]["exp_avg"]
    merged = merge(planted)
    carry_state(optimizer, planted, merged)
    names = {id(p): n for n, p in merged.named_parameters()}
    held = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    assert held == {"c1.weight", "c1.bias", "n1.weight", "n1.bias", "c2.weight"}
    value = optimizer.state[merged.c1.weight]
    assert torch.equal(value["exp_avg"][5:], moments)
    assert not value["exp_avg"][:5].any()
    assert float(value["step"]) == 2


def test_growth_after_growth():
    net = network("residual").train()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    train(net, optimizer, 2)
    first = optimizer.state[net.c1.weight]["exp_avg"].clone()
    for width in (5, 8):
        planted = plant(net, trace(net, X)["c1"], 3, inplace=True)
        with pytest.raises(
            RuntimeError, match=r"optimizer holds c1.weight, which plantops.plant\(\.\.\., inplace=True\)"
        ):
            optimizer.step()
        merged = merge(planted)
        carry_state(optimizer, planted, merged)
        value = optimizer.state[merged.c1.weight]["exp_avg"]
        assert value.shape[0] == width + 3
        assert torch.equal(value[:width], first)
        train(merged, optimizer, 1)
        first = optimizer.state[merged.c1.weight]["exp_avg"].clone()
        net = merged


def test_an_average_of_the_weights_grows():
    net = network("residual").train()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = OPTIMIZERS["SGD"](net.parameters())
    for _ in range(2):
        train(net, optimizer, 1)
        average.update_parameters(net)
    old = {key: value.clone() for key, value in average.module.state_dict().items()}
    site = trace(net, X)["c1"]
    planted = plant(net, site, 3)
    of_planted = AveragedModel(planted, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    blocks = OPTIMIZERS["SGD"](planted_parameters(planted))
    for _ in range(2):
        train(planted, blocks, 1)
        of_planted.update_parameters(planted)
    merged = merge(planted)
    for source, expected in ((None, planted), (of_planted, of_planted.module)):
        grown = carry_state(copy.deepcopy(average), planted, merged, source)
        assert grown.n_averaged == 2
        assert [p.shape for p in grown.module.parameters()] == [p.shape for p in merged.parameters()]
        assert all(torch.equal(v, old[k]) for k, v in trunk_state(grown.module, site, 3).items())
        assert torch.equal(grown.module.c1.weight[5:], expected.c1.weight_out)
        assert torch.equal(grown.module.c2.weight[:, 5:], expected.c2.weight_in)
        before = grown.module.c1.weight.detach().clone()
        grown.update_parameters(merged)
        torch.testing.assert_close(grown.module.c1.weight, (before + merged.c1.weight) / 2)
    plain = carry_state(of_planted, planted, merged)
    check_function_preserving(plain.module, merge(of_planted.module), X)
    assert type(plain.module.c1) is nn.Conv2d


def test_a_gradient_scaler_stays_as_it_is():
    net = network("residual")
    planted = plant(net, trace(net, X)["c1"], 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    assert carry_state(scaler, planted, merge(planted)) is scaler
    assert scaler.state_dict()["scale"] == 512.0


def test_mistakes_are_named():
    net = network("residual")
    plan = trace(net, X)
    planted = plant(net, plan["c1"], 3)
    merged = merge(planted)
    optimizer = OPTIMIZERS["SGD"](net.parameters())
    with pytest.raises(ValueError, match="planted has no planted layers"):
        carry_state(optimizer, merged, merged)
    with pytest.raises(TypeError, match=r"state must be an optimizer .* got dict"):
        carry_state({}, planted, merged)
    with pytest.raises(TypeError, match="got LBFGS"):
        carry_state(torch.optim.LBFGS(net.parameters()), planted, merged)
    with pytest.raises(TypeError, match="planted_state must be an Optimizer, as state is, got AveragedModel"):
        carry_state(optimizer, planted, merged, AveragedModel(planted))
    with pytest.raises(ValueError, match="state holds no parameter of the model"):
        carry_state(OPTIMIZERS["SGD"](network("residual").parameters()), planted, merged)
    with pytest.raises(
        ValueError, match=r"merged is not merge\(planted\): expected c1.weight of \[8, 4, 3, 3\], got \[5, 4"
    ):
        carry_state(optimizer, planted, net)
    with pytest.raises(ValueError, match="average of another model"):
        carry_state(AveragedModel(network("gate")), planted, merged)
    factored = torch.optim.Adafactor(net.parameters())
    train(net, factored, 1)
    with pytest.raises(ValueError, match="state: Adafactor keeps 'row_var'"):
        carry_state(factored, planted, merged)


def test_a_planted_model_is_still_pickled_and_copied():
    net = network("residual").train()
    optimizer = OPTIMIZERS["SGD"](net.parameters())
    train(net, optimizer, 1)
    net.way = None
    planted = plant(net, trace(network("residual"), X)["c1"], 3)
    again = pickle.loads(pickle.dumps(planted))
    assert [p.shape for p in plantops.merge(again).parameters()] == [p.shape for p in merge(planted).parameters()]
    twin = copy.deepcopy(planted)
    carry_state(optimizer, twin, merge(twin))
