"""The search: who competes, who wins, when it ends, and that it repeats bit for bit."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import plantops
from plantops import Planter, PlanterConfig
from plantops.models import PlantingNet, count_macs, count_parameters
from plantops.planting import pruned as pruned_between_rounds
from plantops.planting.candidate import Candidate, Growth, Proposal
from plantops.planting.experiment import Comparison, Experiment, Family, check_experiment, run_experiment
from plantops.planting.gradmax import GradMax
from plantops.planting.networks import find_network, load_network, save_network
from plantops.planting.pruned import Pruned
from plantops.planting.search import PlanterResult, Round
from plantops.planting.trunk import trunk_state
from plantops.planting.winners import fill, ranked
from plantops.pruning import PruneResult
from plantops.train.data import DataParts, ImageData
from plantops.train.loop import Trainer, evaluate
from plantops.train.recipe import Recipe
from plantops.train.run import Run, RunError, read_run
from plantops.train.session import Session

CLASSES = 3
CONVOLUTIONS = [f"conv{number}" for number in range(1, 6)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks of this size only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count: int = 36, seed: int = 0) -> ImageData:
    """Classes that differ in brightness, with noise."""
    own = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 90, (count, 1, 8, 8), generator=own)
    pixels = (noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ImageData(pixels, labels, torch.tensor([127.0]), torch.tensor([70.0]), CLASSES)


def network(width: int = 2, seed: int = 0, batch_norm: bool = False) -> PlantingNet:
    return Family(CLASSES, 1, 8, fc_width=8, batch_norm=batch_norm).build([width] * 5, seed, "test")


def config(**fields: Any) -> PlanterConfig:
    return PlanterConfig(**{"channels": 2, "epochs": 2, "max_rounds": 2, "lr": 0.05, "batch_size": 12, **fields})


def search(model: nn.Module | None = None, **fields: Any) -> PlanterResult:
    return Planter(model or network(), network(6, 1), images(), images(18, 1), config(**fields)).run()


def state_bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def candidate(site: str, loss: float | None, added: int) -> Candidate:
    return Candidate(Proposal.of(Growth(site, 1)), site, 100 + added, added, 0, loss, 0.5, 0.1, 0.0)


# The choice


def test_the_smallest_held_out_loss_wins() -> None:
    candidates = [candidate("a", 0.9, 1), candidate("b", 0.7, 1000), candidate("c", 0.8, 1)]
    assert [winner.name for winner in ranked(candidates, 1.0, "loss")] == ["b", "c", "a"]


def test_loss_per_parameter_weighs_the_cost() -> None:
    candidates = [candidate("a", 0.9, 10), candidate("b", 0.7, 1000), candidate("c", 1.2, 1)]
    assert [winner.name for winner in ranked(candidates, 1.0, "loss_per_parameter")] == ["a", "b"]


@pytest.mark.parametrize("select", ["loss", "loss_per_parameter"])
def test_not_growing_competes(select: str) -> None:
    assert ranked([candidate("a", 1.0, 1), candidate("b", 1.1, 1)], 1.0, select) == []


def test_a_candidate_that_diverged_never_wins() -> None:
    assert ranked([candidate("a", None, 1)], 1.0, "loss") == []


# The search


def test_every_round_is_smaller_in_loss_and_larger_in_parameters() -> None:
    initial = network()
    result = search(initial)
    assert result.stop in ("max_rounds", "no candidate improves")
    assert len(result.rounds) == len(result.history) + 1 >= 2
    for before, after in zip(result.rounds, result.rounds[1:], strict=False):
        assert after.val_loss is not None
        assert before.val_loss is not None
        assert after.val_loss < before.val_loss
        assert after.widths[str(after.grown)] == before.widths[str(after.grown)] + after.channels
    last = result.rounds[-1]
    assert (last.parameters, last.macs) == (count_parameters(result.model), count_macs(result.model, (1, 8, 8)))
    assert len(result.candidates[1]) == 5
    for entry in result.candidates[1]:
        site = plantops.trace(initial, torch.zeros(2, 1, 8, 8))[entry.name]
        assert entry.added_parameters == 2 * site.parameters_per_channel
    # What was measured of the planted candidate is what the merged network is worth.
    score = evaluate(result.model, images(18, 1))
    assert score.loss == pytest.approx(last.val_loss, rel=1e-5)
    assert {type(module) for module in result.model.modules()} <= {
        PlantingNet, nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d,
    }  # fmt: skip


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_trunk_of_every_round_keeps_its_bits(batch_norm: bool) -> None:
    initial = network(batch_norm=batch_norm)
    before = state_bits(initial)
    result = search(initial, max_rounds=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in initial.state_dict().items())
    growth = result.history[0]
    site = plantops.trace(initial, torch.zeros(2, 1, 8, 8))[growth.site]
    assert plantops.planting.trunk_hash(initial) == plantops.planting.trunk_hash(result.model, site, growth.channels)


def test_it_repeats_bit_for_bit_and_touches_no_global_generator() -> None:
    state = torch.get_rng_state()
    first = search(crop=1, flip=True)
    torch.manual_seed(99)
    second = search(crop=1, flip=True)
    assert same_bits(first.model, second.model)
    assert [row.val_loss for row in first.rounds] == [row.val_loss for row in second.rounds]
    torch.set_rng_state(state)
    search(max_rounds=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_candidate_does_not_depend_on_who_else_competes() -> None:
    everyone = search(max_rounds=1).candidates[1]
    alone = search(max_rounds=1, channels={"conv3": 2}).candidates[1]
    assert [entry.name for entry in alone] == ["conv3"]
    (same,) = (entry for entry in everyone if entry.name == "conv3")
    assert (alone[0].val_loss, alone[0].train_loss) == (same.val_loss, same.train_loss)


def test_channels_per_layer() -> None:
    result = search(channels={"conv4": 1, "conv1": 3}, max_rounds=1)
    assert [(c.name, sum(c.proposal.channels.values())) for c in result.candidates[1]] == [("conv1", 3), ("conv4", 1)]


def test_candidates_grow_by_as_much_as_fits_but_at_least_half() -> None:
    initial = network()
    plan = plantops.trace(initial, torch.zeros(2, 1, 8, 8), grow_linear=False)
    cost = {name: site.parameters_per_channel for name, site in plan.items()}
    left = sorted(4 * each for each in cost.values())[1]  # two of the sites have room for all four channels
    result = search(initial, channels=4, max_parameters=count_parameters(initial) + left, max_rounds=1)
    fit = {name: min(4, left // each) for name, each in cost.items()}
    assert set(fit.values()) >= {3, 4}
    assert {c.name: c.proposal.channels for c in result.candidates[1]} == {
        name: {name: count} for name, count in fit.items() if count >= 2
    }


def test_no_rounds_gives_the_initial_network() -> None:
    initial = network()
    result = search(initial, max_rounds=0)
    assert (result.stop, result.history, result.epochs) == ("max_rounds", [], 0)
    assert same_bits(result.model, initial)


def test_fc1_grows_when_asked_to() -> None:
    assert "fc1" not in search(max_rounds=1).rounds[0].widths
    result = search(max_rounds=1, grow_linear=True, channels={"fc1": 4})
    assert result.candidates[1][0].proposal == Proposal.of(Growth("fc1", 4))


def test_finetuning_trains_everything_and_keeps_the_planted_network() -> None:
    plain = search(max_rounds=1)
    tuned = search(max_rounds=1, finetune_epochs=2)
    assert same_bits(plain.model, tuned.planted)
    moved = [n for n, t in tuned.model.named_parameters() if not torch.equal(t, tuned.planted.get_parameter(n))]
    assert moved == [name for name, _ in tuned.planted.named_parameters()]
    assert tuned.epochs == plain.epochs + 2


def test_joint_training_after_a_round_moves_everything_and_the_next_round_freezes_it() -> None:
    alone, joint = search(max_rounds=1), search(max_rounds=1, joint_epochs=1)
    assert alone.rounds[1].widths == joint.rounds[1].widths
    moved = [n for n, t in joint.model.named_parameters() if not torch.equal(t, alone.model.get_parameter(n))]
    assert moved == [name for name, _ in alone.model.named_parameters()]
    # The round is worth what it is after its joint training.
    assert joint.rounds[1].val_loss == evaluate(joint.model, images(18, 1)).loss
    assert joint.epochs == alone.epochs + 1
    two = search(max_rounds=2, joint_epochs=1, finetune_epochs=1)
    assert two.rounds[1] == dataclasses.replace(joint.rounds[1], round_seconds=two.rounds[1].round_seconds)
    assert two.epochs == 2 * (2 + 1) + 1
    assert two.finetune_epochs == 1
    planted = plantops.plant(joint.model, plantops.trace(joint.model, torch.zeros(2, 1, 8, 8))["conv1"], 1)
    assert sum(p.requires_grad for p in planted.parameters()) == 3  # the out block with its bias, the in block


def test_the_last_joint_training_fills_the_path_up() -> None:
    assert search(max_rounds=1, path_epochs=7).epochs == 7
    assert search(max_rounds=1, path_epochs=7, finetune_epochs=6, objective="ce").epochs == 2 + 6
    assert search(max_rounds=1, path_epochs=1).epochs == 2


def _trained_apart(model: nn.Module, sites: list[str]) -> list[dict[str, Tensor]]:
    """Blocks at each site as if trained: everything that is not trunk is random."""
    plan = plantops.trace(model, torch.zeros(2, 1, 8, 8))
    found = []
    for number, site in enumerate(sites):
        planted = plantops.plant(model, plan[site], 2)
        frozen, own = trunk_state(planted), torch.Generator().manual_seed(number)
        state = planted.state_dict()
        found.append({n: torch.randn(t.shape, generator=own) for n, t in state.items() if n not in frozen})
    return found


@pytest.mark.parametrize(
    "sites", [["conv1", "conv4"], ["conv1", "conv2"], ["conv4", "conv5"], ["conv1", "conv2", "conv3"]]
)
def test_blocks_that_were_trained_apart_are_put_together(sites: list[str]) -> None:
    model = network()
    blocks = _trained_apart(model, sites)
    plan = plantops.trace(model, torch.zeros(2, 1, 8, 8))
    together = plantops.plant(model, [plan[site] for site in sites], 2)
    fill(together, blocks)
    grown = plantops.merge(together)
    # Every site's own blocks stand in the grown layers, behind the old channels; old and new do not mix elsewhere.
    for site, own in zip(sites, blocks, strict=True):
        layer, old = grown.get_submodule(site), model.get_submodule(site)
        wide, width = own[f"{site}.weight_out"].shape[1], old.weight.shape[0]
        assert torch.equal(layer.weight[width:, :wide], own[f"{site}.weight_out"])
        assert not layer.weight[width:, wide:].any()
        assert torch.equal(layer.bias[width:], own[f"{site}.bias_out"])
        assert torch.equal(layer.weight[:width, :wide], old.weight)
        reader = plan[site].consumers[0].name
        inputs, rows = model.get_submodule(reader).weight.shape[1], model.get_submodule(reader).weight.shape[0]
        assert torch.equal(grown.get_submodule(reader).weight[:rows, inputs:], own[f"{reader}.weight_in"])


def test_blocks_in_one_place_cannot_be_put_together() -> None:
    model = network()
    (blocks,) = _trained_apart(model, ["conv1"])
    plan = plantops.trace(model, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"conv1\.weight_out once, got it 2 times"):
        fill(plantops.plant(model, plan["conv1"], 2), [blocks, blocks])
    with pytest.raises(ValueError, match=r"conv1\.weight_out must have the shape \[3, 1, 3, 3\], got \[2, 1, 3, 3\]"):
        fill(plantops.plant(model, plan["conv1"], 3), [blocks])


def test_a_round_grows_at_its_best_sites_together() -> None:
    few: dict[str, Any] = {"model": network(3), "max_rounds": 1, "lr": 0.01, "epochs": 4}
    one, three = search(**few), search(**few, sites_per_round=3)
    ranking = ranked(one.candidates[1], one.rounds[0].val_loss or 0, "loss")
    first, last = one.rounds[1], three.rounds[1]
    assert first.grown == ranking[0].name
    assert three.history == [winner.proposal.growths[0] for winner in ranking[:3]]
    assert last.grown == ", ".join(growth.site for growth in three.history)
    assert last.val_loss == evaluate(three.model, images(18, 1)).loss
    assert last.val_loss < (first.val_loss or 0)
    assert last.channels == 6
    assert last.parameters == count_parameters(three.model)
    # What does not fit beside the others is left out, and the next best takes its place.
    limit = last.parameters - 1
    others = search(**few, sites_per_round=3, max_parameters=limit)
    assert others.history == [ranking[place].proposal.growths[0] for place in (0, 1, 3)]
    assert others.rounds[1].parameters <= limit


def test_sites_together_have_to_beat_the_best_alone() -> None:
    """Trained at this rate the blocks overshoot when they are put together."""
    few: dict[str, Any] = {"model": network(3, 7), "max_rounds": 1, "epochs": 4}
    one, three = search(**few), search(**few, sites_per_round=3)
    assert len(ranked(one.candidates[1], one.rounds[0].val_loss or 0, "loss")) == 5
    assert three.history == one.history
    assert same_bits(three.model, one.model)


def test_any_callable_teaches_and_any_map_style_dataset_serves() -> None:
    data = images()
    samples = [(data.normalise(image)[0], int(label)) for image, label in zip(data.images, data.labels, strict=True)]
    teacher = network(6, 1)
    result = Planter(network(), lambda x: teacher(x), samples, samples[:9], config(max_rounds=1)).run()
    assert len(result.candidates[1]) == 5


def test_the_teacher_is_evaluated_and_not_differentiated() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return self.net(x)

    teacher = Watched().train()
    Planter(network(), teacher, images(), images(18, 1), config(max_rounds=1)).run()
    assert all(parameter.grad is None for parameter in teacher.parameters())


# Mistakes


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("channels", 0, "channels must be an integer of at least 1, got 0"),
        ("channels", {}, "channels must name at least one layer"),
        ("channels", {"conv1": -1}, r"channels\['conv1'\] must be an integer of at least 1, got -1"),
        ("select", "accuracy", "select must be one of loss, loss_per_parameter, got 'accuracy'"),
        ("max_rounds", -1, "max_rounds must be an integer of at least 0, got -1"),
        ("max_parameters", 0, "max_parameters must be an integer of at least 1, got 0"),
        ("epochs", 0, "epochs must be an integer of at least 1, got 0"),
        ("sweep", "magic", "sweep must be one of shared, loop, got 'magic'"),
        ("sweep_memory", 0, "sweep_memory must be an integer of at least 1, got 0"),
        ("sites_per_round", 0, "sites_per_round must be an integer of at least 1, got 0"),
        ("joint_epochs", -1, "joint_epochs must be an integer of at least 0, got -1"),
        ("joint_lr", 0.0, "joint_lr must be above 0, got 0.0"),
        ("path_epochs", -1, "path_epochs must be an integer of at least 0, got -1"),
        ("finetune_lr", 0.0, "finetune_lr must be above 0, got 0.0"),
        ("finetune_lr", float("inf"), "finetune_lr must be finite and above 0, got inf"),
        ("joint_lr", float("nan"), "joint_lr must be finite and above 0, got nan"),
        ("crop", -1, "crop must be 0 or more whole pixels, got -1"),
        ("crop", 2.5, "crop must be 0 or more whole pixels, got 2.5"),
        ("flip", "no", "flip must be True or False, got 'no'"),
    ],
)
def test_config_names_field_and_value(field: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PlanterConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("lr", "0.1", "lr must be a number, above 0, got '0.1'"),
        ("momentum", None, "momentum must be a number, from 0 to below 1, got None"),
        ("sites", "conv1", r"sites must be several patterns, as in \('layer3.\*',\), got 'conv1'"),
        ("seed", 1.5, "seed must be an integer, got float: 1.5"),
        ("init", None, "init must be a name or a GradMax object, got None"),
    ],
)
def test_config_names_the_type_that_came(field: str, value: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        PlanterConfig(**{field: value})


def test_what_does_not_fit_is_said_before_anything_trains() -> None:
    data = images()
    with pytest.raises(
        ValueError, match="channels: conv9 cannot grow: no such layer; the layers that can grow are conv1"
    ):
        Planter(network(), network(), data, data, config(channels={"conv9": 1}))
    with pytest.raises(ValueError, match=r"init='zero_out' cannot start conv1: what follows .* has slope 0 at 0"):
        Planter(network(), network(), data, data, config(init="zero_out"))
    with pytest.raises(ValueError, match=r"init must be one of zero_in, .* got 'ones'"):
        Planter(network(), network(), data, data, config(init="ones"))
    with pytest.raises(ValueError, match=r"channels: fc2 cannot grow: .*output"):
        Planter(network(), network(), data, data, config(channels={"fc2": 1}))
    with pytest.raises(ValueError, match=r"teacher must give logits \[2, 3\] .* got \[2, 4\]"):
        Planter(network(), Family(4, 1, 8).build([2] * 5, 0, "t"), data, data, config())


# The whole experiment, and networks as files


def experiment(**fields: Any) -> Experiment:
    short = Recipe(epochs=1, batch_size=12)
    return Experiment(
        Family(CLASSES, 1, 8, fc_width=8),
        (4,) * 5,
        short,
        (2,) * 5,
        short,
        config(max_rounds=1, **fields),
        Comparison((3,), Recipe(epochs=1, objective="kl", batch_size=12)),
    )


def parts() -> DataParts:
    return DataParts(images(), images(18, 1), images(12, 2))


def test_a_run_ends_with_every_network_in_its_folder(tmp_path: Path) -> None:
    given = experiment(finetune_epochs=1)
    with Run.create(tmp_path / "run", {}) as run:
        result = run_experiment(given, parts(), Session(run))
    assert list(result.networks) == ["teacher", "initial", "planted", "finetuned", "uniform-3"]
    for name, model in result.networks.items():
        assert same_bits(load_network(tmp_path / "run", name), model)
    assert find_network(tmp_path / "run").name == "finetuned"
    records = {record["name"]: record for record in read_run(tmp_path / "run").of("network")}
    assert records["uniform-3"]["epochs"] == 1 + 2 + 1  # initial, one round of two, one of fine-tuning
    score = evaluate(result.networks["planted"], parts().test)
    assert records["planted"]["test_loss"] == score.loss
    assert records["planted"]["test_accuracy"] == score.accuracy
    assert result.search is not None
    assert records["planted"]["widths"] == result.search.rounds[-1].widths


def test_a_given_teacher_is_not_trained() -> None:
    teacher = network(6, 1)
    before = copy.deepcopy(teacher)
    result = run_experiment(experiment(), parts(), Session(), teacher)
    assert same_bits(teacher, before)
    assert result.networks["teacher"] is teacher
    assert result.records[0]["epochs"] is None


def test_an_experiment_is_checked_before_it_begins() -> None:
    check_experiment(experiment(), parts())
    with pytest.raises(ValueError, match="conv7 cannot grow"):
        check_experiment(experiment(channels={"conv7": 1}), parts())


DATA = {"name": "images", "shape": [1, 8, 8], "num_classes": CLASSES, "mean": [0.0], "std": [1.0]}


def test_grown_networks_of_any_kind_are_stored(tmp_path: Path) -> None:
    model = network(batch_norm=True)
    plan = plantops.trace(model, torch.zeros(2, 1, 8, 8))
    for site, channels in (("conv2", 3), ("fc1", 5)):
        model = plantops.merge(plantops.plant(model, plan[site], channels))
    save_network(tmp_path / "net", model, name="grown", role="planted", data=DATA)
    loaded = load_network(tmp_path / "net")
    assert same_bits(loaded, model)
    with torch.no_grad():
        assert torch.equal(loaded(torch.ones(2, 1, 8, 8)), model.eval()(torch.ones(2, 1, 8, 8)))


def test_damaged_and_foreign_networks_are_refused(tmp_path: Path) -> None:
    save_network(tmp_path / "net", network(), name="n", role="planted", data=DATA)
    weights = tmp_path / "net" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(RunError, match=r"model\.safetensors: damaged, its SHA-256"):
        load_network(tmp_path / "net")
    (tmp_path / "net" / "structure.json").write_text('{"format": "other"}')
    with pytest.raises(RunError, match="not written by plantops"):
        load_network(tmp_path / "net")
    with pytest.raises(RunError, match="does not exist"):
        load_network(tmp_path / "nothing")
    with pytest.raises(TypeError, match="model must be a PlantingNet or made by name, got Linear"):
        save_network(tmp_path / "x", nn.Linear(1, 1), name="n", role="planted", data={})


# Pruning between rounds


def wasteful(dead: int = 2) -> PlantingNet:
    """A network at the beginning of its training, with ``dead`` channels more in conv2 that nobody reads."""
    model = network(3)
    train, recipe = images(), Recipe(epochs=2, lr=0.05, batch_size=12)
    trainer = Trainer(model, train, None, recipe, seed=0)
    while not trainer.finished:
        trainer.run_epoch()
    plan = plantops.trace(model, train.normalise(train.images[:2]))
    planted = plantops.plant(model, plan["conv2"], dead, init="zero_in", generator=torch.Generator().manual_seed(0))
    return plantops.merge(planted)


SOME = {"conv1": 2, "conv2": 2, "conv4": 2}


def pruning_search(tmp_path: Path, **fields: Any) -> tuple[PlanterResult, list[dict[str, Any]]]:
    with Run.create(tmp_path / "run", {}) as run:
        model, settings = wasteful(), config(epochs=8, **fields)
        result = Planter(model, network(6, 1), images(), images(18, 1), settings, run=run).run()
    return result, read_run(tmp_path / "run").metrics


def check_pruning(pruned: Pruned, row: Round, gained_from: float | None) -> None:
    """What it took is what it says, and it cost at most a tenth of what was gained before."""
    assert set(pruned.removed) <= set(SOME)
    for name, gone in pruned.removed.items():
        assert pruned.widths[name] == row.widths[name] - gone
    (sample_before, sample_after), (before, after) = pruned.sample_loss, pruned.val_loss
    assert None not in (sample_before, sample_after, before, after, gained_from)
    assert before == row.val_loss
    assert pruned.max_loss_increase == pytest.approx(0.1 * (gained_from - before))  # type: ignore[operator]
    assert sample_after <= sample_before + pruned.max_loss_increase  # type: ignore[operator]
    assert after <= before + pruned.max_loss_increase + 1e-7  # type: ignore[operator]


def test_pruning_between_rounds(tmp_path: Path) -> None:
    result, metrics = pruning_search(tmp_path, prune_every=1, max_rounds=3, channels=SOME)
    assert [pruned.round for pruned in result.prunings] == [row.round for row in result.rounds[1:]]
    assert len(result.prunings) >= 2
    assert result.prunings[0].removed["conv2"] >= 2  # the two that nobody reads
    gained_from = result.rounds[0].val_loss
    for row, pruned in zip(result.rounds[1:], result.prunings, strict=True):
        check_pruning(pruned, row, gained_from)
        gained_from = pruned.val_loss[1]
    for pruned, row in zip(result.prunings, result.rounds[2:], strict=False):  # the search went on from what was left
        assert row.val_loss < pruned.val_loss[1]  # type: ignore[operator]
        winner = next(c for c in result.candidates[row.round] if c.name == row.grown)
        assert row.parameters == pruned.parameters + winner.added_parameters
        assert row.widths == {**pruned.widths, row.grown: pruned.widths[row.grown] + row.channels}  # type: ignore
    last, score = result.prunings[-1], evaluate(result.planted, images(18, 1))
    assert count_parameters(result.planted) == last.parameters
    assert count_macs(result.planted, images().shape) == last.macs
    assert (score.loss, score.accuracy) == (last.val_loss[1], last.val_accuracy)
    records = [record for record in metrics if record["kind"] == "pruned"]
    assert [(r["round"], r["removed"]) for r in records] == [(p.round, p.removed) for p in result.prunings]
    how = {
        "criterion": "loss",
        "samples": 1024,
        "share": 0.1,
        "max_loss_increase": result.prunings[0].max_loss_increase,
    }
    assert how.items() <= records[0].items()


def test_sites_that_pruning_left_too_narrow_to_be_copied_are_left_out(tmp_path: Path) -> None:
    """Copies are of old channels, each once."""
    result, _ = pruning_search(tmp_path, prune_every=1, max_rounds=3, channels=3, init="copy")
    pruned = result.prunings[0]
    assert min(pruned.widths[name] for name in CONVOLUTIONS) < 3
    tried = {candidate.name for candidate in result.candidates.get(2, [])}
    assert tried == {name for name in CONVOLUTIONS if pruned.widths[name] >= 3}


def test_gradmax_starts_the_candidates(tmp_path: Path) -> None:
    data = images()
    x, target = data.normalise(data.images[:12]), data.labels[:12]
    result = search(max_rounds=1, init=GradMax(x, lambda logits: nn.functional.cross_entropy(logits, target)))
    assert [one.name for one in result.candidates[1]] == CONVOLUTIONS
    with pytest.raises(ValueError, match="GradMax cannot start conv1: the norm"):
        search(network(batch_norm=True), init=GradMax(x, lambda logits: logits.sum()))


def test_pruning_is_every_so_many_growths(tmp_path: Path) -> None:
    result, _ = pruning_search(tmp_path, prune_every=2, max_rounds=3)
    assert len(result.history) == 3
    assert [pruned.round for pruned in result.prunings] == [2]


def test_a_step_that_the_held_out_part_misses_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reckless(*args: Any, max_loss_increase: float, **kwargs: Any) -> PruneResult:
        return plantops.prune(*args, max_loss_increase=1e9, **kwargs)

    monkeypatch.setattr(pruned_between_rounds, "prune", reckless)
    result, _ = pruning_search(tmp_path, prune_every=1, max_rounds=1, channels=SOME)
    (pruned,) = result.prunings
    before, after = pruned.val_loss
    assert after <= before + pruned.max_loss_increase + 1e-7  # type: ignore[operator]
    assert sum(pruned.widths[name] for name in SOME) > len(SOME)  # one channel each would have been left


def test_a_model_whose_steps_cannot_be_followed_is_pruned_by_calling_it() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if len(x) > 0 else self.inner(x) * 2

    with pytest.warns(UserWarning, match="the model is called once for each channel that is scored"):
        result = search(Branching(), prune_every=1, max_rounds=1)
    assert [pruned.round for pruned in result.prunings] == [1]
    with pytest.raises(ValueError, match="prune_every must be an integer of at least 0, got -1"):
        config(prune_every=-1)


@pytest.mark.parametrize(
    ("paper", "grow_linear", "expected"),
    [(True, None, False), (True, True, True), (False, None, True), (False, False, False)],
)
def test_hidden_linear_layers_grow_but_for_the_papers_network(paper: bool, grow_linear: bool | None, expected: bool):
    model: nn.Module = network()
    if not paper:
        head = [nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES)]
        model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 1), *head)
    search = Planter(model, network(6, 1), images(), images(18, 1), config(grow_linear=grow_linear))
    linear = "fc1" if paper else "4"
    assert (linear in search.initial.plan) == (linear in search.initial.widths) == expected


@pytest.mark.filterwarnings("ignore:teacher:UserWarning")
@pytest.mark.parametrize("sweep", ["shared", "loop"])
def test_a_rest_of_one_image_trains_with_the_batch_before_it(sweep: str) -> None:
    """A batch norm over single values has no variance of one image."""

    def small() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            convolutions = [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()]
            return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(5, CLASSES))

    own = config(max_rounds=1, epochs=1, batch_size=12, crop=1, sweep=sweep, finetune_epochs=1)
    result = Planter(small(), small(), images(25), images(13, 1), own).run()
    assert {candidate.name for candidate in result.candidates[1]} == {"0", "2"}
    assert all(candidate.train_loss is not None for candidate in result.candidates[1])
