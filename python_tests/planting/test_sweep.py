"""The sweep in one pass trains every candidate as the loop does, keeps what it may keep, and holds what it says."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plantops.graph.capture import Untraceable
from plantops.graph.forward import Forward
from plantops.planting import trunk_hash
from plantops.planting.candidate import sweep_loop
from plantops.planting.sweep import round as one_pass
from plantops.planting.sweep.features import FeatureStore
from plantops.planting.sweep.trunk import Trunk
from plantops.train.batches import Augment, epoch_batches
from plantops.train.data import ImageData
from plantops.train.run import Run
from python_tests.planting.sweeps import AUGMENTED, held_after_rounds, images, network, planter, records, trained


@pytest.fixture(autouse=True)
def double_images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images have the dtype that the test asks for; the loaders only know float32."""
    dtype = getattr(request.node, "callspec", None) and request.node.callspec.params.get("dtype", torch.float32)
    whole = ImageData.normalise
    monkeypatch.setattr(ImageData, "normalise", lambda self, images: whole(self, images).to(dtype or torch.float32))


def check_alike(search: dict[str, Any], tolerance: float, loss_tolerance: float) -> None:
    """What training changed is the same for loop and shared sweep."""
    loop, start, expected = trained(planter(**search), sweep_loop)
    shared, _, actual = trained(planter(**search), one_pass.sweep_shared)
    assert len(shared) == len(loop) >= 2
    for one, other, begin, want, got in zip(loop, shared, start, expected, actual, strict=True):
        assert (want - begin).norm() > 1e-3 * want.norm(), "nothing was trained"
        assert (got - want).norm() <= tolerance * (want - begin).norm(), one.name
        assert one.loss == pytest.approx(other.loss, rel=loss_tolerance)
        assert one.train_loss == pytest.approx(other.train_loss, rel=loss_tolerance)
        assert (one.key, one.parameters, one.macs) == (other.key, other.parameters, other.macs)
    if tolerance < 1e-6:
        assert min(loop, key=lambda c: c.loss).proposal == min(shared, key=lambda c: c.loss).proposal


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["chain", "normed", "residual", "split"])
@pytest.mark.parametrize("augmented", AUGMENTED, ids=["plain", "flips", "crops"])
def test_one_step_is_the_loops(kind: str, augmented: dict[str, Any], dtype: torch.dtype) -> None:
    """One optimizer step on all images; the biases in front of a norm have no gradient but rounding."""
    changes = {"batch_size": 30, "epochs": 1, "schedule": "constant", "lr": 5.0, **augmented}
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    check_alike({"kind": kind, "dtype": dtype, **changes}, tolerance, tolerance)


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.parametrize("kind", ["chain", "normed", "residual"])
def test_sites_that_grow_together_train_as_in_the_loop(kind: str, dtype: torch.dtype) -> None:
    """Pairs and all sites in proportion are candidates beside the single ones, of which they change no bit."""
    check_alike({"kind": kind, "dtype": dtype, "compound": ("pairs", "all"), "lr": 0.5}, 1e-9, 1e-9)
    alone, _, blocks = trained(planter(kind, dtype), one_pass.sweep_shared)
    together, _, more = trained(planter(kind, dtype, compound=("pairs", "all")), one_pass.sweep_shared)
    assert [one.name for one in together][: len(alone)] == [one.name for one in alone]
    assert together[-1].name == "all"
    assert len(together) > len(alone) + 1
    assert all(torch.equal(one, other) for one, other in zip(blocks, more, strict=False))


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("augmented", AUGMENTED, ids=["plain", "flips", "crops"])
def test_fifty_steps_are_the_loops(optimizer: str, augmented: dict[str, Any], dtype: torch.dtype) -> None:
    changes = {"batch_size": 6, "epochs": 10, "optimizer": optimizer, "lr": 0.02, **augmented}
    check_alike({"kind": "chain", "dtype": dtype, **changes}, 1e-8, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_every_candidate_has_a_discriminator_of_its_own(dtype: torch.dtype) -> None:
    check_alike({"kind": "chain", "dtype": dtype, "objective": "adversarial", "lr": 0.01}, 1e-9, 1e-9)


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_bfloat16_is_the_loops_to_its_epsilon(kind: str) -> None:
    changes = {"batch_size": 30, "epochs": 1, "schedule": "constant", "lr": 5.0, "precision": "bf16"}
    check_alike({"kind": kind, **changes}, 4 * torch.finfo(torch.bfloat16).eps, torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_a_candidate_does_not_depend_on_who_shares_its_pass(kind: str, channels_last: bool) -> None:
    _, _, everyone = trained(planter(kind, channels_last=channels_last), one_pass.sweep_shared)
    search = planter(kind, channels_last=channels_last)
    for place, site in enumerate(search.initial.plan):
        _, _, alone = trained(planter(kind, channels_last=channels_last), one_pass.sweep_shared, [site])
        assert torch.equal(alone[0], everyone[place]), site


@pytest.mark.parametrize("augmented", AUGMENTED, ids=["plain", "flips", "crops"])
def test_nothing_else_moves(augmented: dict[str, Any]) -> None:
    search = planter("normed", epochs=3, **augmented)
    before = trunk_hash(search.initial.model), copy.deepcopy(search.around.train.images)
    trained(search, one_pass.sweep_shared)
    assert trunk_hash(search.initial.model) == before[0]
    assert torch.equal(search.around.train.images, before[1])


def test_the_run_says_how_each_candidate_was_trained(tmp_path: Path) -> None:
    for kind in ("residual", "unfollowed"):
        with Run.create(tmp_path / kind, {}) as run:
            trained(planter(kind, run=run), one_pass.sweep_shared)
    (shared,), (loop,) = records(tmp_path / "residual", "sweep"), records(tmp_path / "unfollowed", "sweep")
    modes = {"stem": "suffix", "conv1": "slices", "conv2": "suffix", "hidden": "slices"}
    assert (shared["mode"], shared["sites"], shared["groups"]) == ("shared", modes, 1)
    assert loop["mode"] == "loop"
    assert "for the sizes of the example inputs only" in loop["reason"]


# Memory


@pytest.mark.parametrize("dtype", [torch.float64])
def test_groups_that_fit_the_budget(tmp_path: Path, dtype: torch.dtype) -> None:
    """Smaller groups, the same bits; where one candidate does not fit, the loop's numbers, and the run says so."""
    with Run.create(tmp_path / "whole", {}) as run:
        _, starts, whole = trained(planter("chain", dtype, run, crop=1), one_pass.sweep_shared)
    held = records(tmp_path / "whole", "sweep")[0]["batch_bytes"]
    with Run.create(tmp_path / "small", {}) as run:
        search = planter("chain", dtype, run, crop=1, sweep_memory=held - 1)
        _, _, grouped = trained(search, one_pass.sweep_shared)
    (record,) = records(tmp_path / "small", "sweep")
    assert record["groups"] == 2
    assert record["batch_bytes"] < held
    assert all(torch.equal(a, b) for a, b in zip(whole, grouped, strict=True))
    with Run.create(tmp_path / "none", {}) as run:
        trained(planter("chain", dtype, run, crop=1, sweep_memory=10), one_pass.sweep_shared)
    (record,) = records(tmp_path / "none", "sweep")
    needed = re.fullmatch(r"(\w+) alone needs sweep_memory=(\d+), got 10", record["reason"])
    assert needed is not None
    largest = int(needed[2])
    for budget, mode in ((largest, "shared"), (largest - 1, "loop")):  # it is the largest: at its size all fit
        with Run.create(tmp_path / str(budget), {}) as run:
            _, _, alone = trained(planter("chain", dtype, run, crop=1, sweep_memory=budget), one_pass.sweep_shared)
        assert records(tmp_path / str(budget), "sweep")[0]["mode"] == mode
        for start, a, b in zip(starts, whole, alone, strict=True):
            assert (a - b).norm() <= 1e-9 * (a - start).norm()


def test_features_on_disk_give_the_bits_of_memory(tmp_path: Path) -> None:
    _, _, memory = trained(planter("chain", flip=True), one_pass.sweep_shared)
    with Run.create(tmp_path / "run", {}) as run:
        _, _, disk = trained(planter("chain", run=run, flip=True, sweep_memory=60_000), one_pass.sweep_shared)
    assert all(torch.equal(a, b) for a, b in zip(memory, disk, strict=True))
    assert not (tmp_path / "run" / "features").exists()


@pytest.fixture
def trunk() -> Trunk:
    model = network("chain", torch.float32).eval().requires_grad_(False)
    return Trunk(Forward.of(model, (torch.zeros(2, 3, 8, 8),)), ["conv2", "pool", "conv5"], "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_does_not_depend_on_what_else_is_kept(dtype: torch.dtype) -> None:
    """Alone, a convolution is one call with what follows it; the bits are those of each kept for itself."""
    model = network("chain", dtype).eval().requires_grad_(False)
    inputs = torch.randn(7, 3, 8, 8, dtype=dtype)
    forward = Forward.of(model, (inputs[:2],))
    names = [step.name for step in forward.steps]
    whole = Trunk(forward, names, "float32")(inputs)
    for name in names:
        alone = Trunk(forward, [name], "float32")(inputs)
        assert torch.equal(alone[name], whole[name]), name
    # What the values are is for the modules to say.
    expected: dict[str, Any] = {forward.input: inputs}
    for step in forward.steps:
        expected[step.name] = forward.run_of(step)(expected)
        torch.testing.assert_close(whole[step.name], expected[step.name])
    without_pooling = [name for name in names if "pool" not in name]
    assert torch.equal(Trunk(forward, without_pooling, "float32")(inputs)["fc2"], whole["fc2"])


def test_kept_features_are_the_trunks(trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both versions of every image, in memory and on disk; a complete file is taken up, one of other weights is not."""
    data = images(30, 3)
    folder = tmp_path / "features"
    calls: list[int] = []
    whole = Trunk.__call__

    def counted(self: Trunk, batch: Tensor) -> dict[str, Tensor]:
        calls.append(len(batch))
        return whole(self, batch)

    stores = [FeatureStore(trunk, None, 1 << 20), *(FeatureStore(trunk, folder, 0) for _ in range(2))]
    monkeypatch.setattr(Trunk, "__call__", counted)
    counts = []
    for store in stores:
        calls.clear()
        features = store.of(data, 2, False)
        counts.append(sum(calls))
        for batch in epoch_batches(data, 8, seed=4, augment=Augment(0, True)):
            kept, computed = features(batch), whole(trunk, batch.images)
            assert set(kept) == set(computed) == {"input_1", "conv2", "pool", "conv5"}
            assert all(torch.allclose(kept[name], computed[name], atol=1e-6) for name in kept)
    first, second, again = counts
    assert first == second > 60 > again
    trunk.forward.model.get_submodule("conv1").weight.add_(1.0)  # type: ignore[union-attr, operator]
    calls.clear()
    changed = FeatureStore(trunk, folder, 0)
    changed.of(data, 2, False)
    assert sum(calls) == second
    for store in (*stores, changed):
        store.close()
    assert not folder.exists()


def test_fifty_rounds_hold_no_more_than_two() -> None:
    held = held_after_rounds(planter("chain", epochs=1), one_pass.sweep_shared, 50)
    assert held[-1] == held[1]


# The forward, step by step


def test_steps_leave_their_inputs_alone() -> None:
    model = network("residual", torch.float64).eval().requires_grad_(False)
    inputs = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    forward = Forward.of(model, (inputs[:2],))
    values: dict[str, Any] = {forward.input: inputs}
    copies = {}
    for step in forward.steps:
        values[step.name] = forward.run_of(step)(values)
        copies[step.name] = copy.deepcopy(values[step.name])
    assert torch.equal(values[forward.output], model(inputs))
    for name, value in copies.items():
        assert value == values[name] if isinstance(value, int) else torch.equal(value, values[name]), name


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        torch.add(x, 1.0, out=x)
        return x


def test_a_forward_that_writes_is_refused() -> None:
    with pytest.raises(Untraceable, match="writes into a tensor"):
        Forward.of(Writes(), (torch.zeros(2, 3),))
