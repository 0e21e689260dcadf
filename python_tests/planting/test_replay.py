"""Steps that are captured and replayed train as steps that are run: by CUDA graphs, or by what stands in for them."""

import gc
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plantops.planting.sweep import round as one_pass
from plantops.planting.sweep.graphs import CudaGraphs
from plantops.planting.sweep.replay import ReplayedTrainer
from plantops.train.run import Run
from plantops.train.session import Interrupted, Session
from python_tests.planting.recorded import RecordedGraphs
from python_tests.planting.sweeps import AUGMENTED, held_after_rounds, planter, records, trained


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraphs]:
    """Steps are captured here, too; the graphs of every group."""
    made: list[RecordedGraphs] = []

    def make(around: Any) -> RecordedGraphs:
        made.append(RecordedGraphs())
        return made[-1]

    monkeypatch.setattr(one_pass, "make_graphs", make)
    return made


def run_and_replayed(graphs: list[RecordedGraphs], monkeypatch: pytest.MonkeyPatch, **search: Any) -> None:
    """The same bits and scores."""
    replayed, start, got = trained(planter(**search), one_pass.sweep_shared)
    with monkeypatch.context() as without:
        without.setattr(one_pass, "make_graphs", lambda around: None)
        run, _, want = trained(planter(**search), one_pass.sweep_shared)
    for one, other, begin, left, right in zip(run, replayed, start, want, got, strict=True):
        assert not torch.equal(begin, left), "nothing was trained"
        assert torch.equal(left, right), one.name
        assert (one.loss, one.val_accuracy, one.train_loss) == (other.loss, other.val_accuracy, other.train_loss)
    assert all(one.closed == 1 for one in graphs)


@pytest.mark.parametrize(("kind", "optimizer"), [("chain", "adamw"), ("normed", "sgd")])
@pytest.mark.parametrize("augmented", AUGMENTED, ids=["plain", "flips", "crops"])
def test_replayed_steps_have_the_bits_of_steps_that_are_run(
    kind: str, augmented: dict[str, Any], optimizer: str, graphs: list[RecordedGraphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of two batches and a smaller one, learning rates that change, held-out scores."""
    run_and_replayed(graphs, monkeypatch, kind=kind, optimizer=optimizer, **augmented)
    (group,) = graphs
    assert group.captures == 3  # batches of 12 and 6 samples, and the held-out part
    assert group.replays == 2 * (3 + 1)
    assert set(group.branched) == {len(planter(kind).initial.plan)}


@pytest.mark.parametrize(
    "changes",
    [{"objective": "kd"}, {"objective": "ce"}, {"precision": "bf16"}, {"momentum": 0.0}, {"channels_last": True},
     {"kind": "residual"}, {"crop": 1, "sweep_memory": 15_000}],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_replayed_steps_of_other_kinds(
    changes: dict[str, Any], graphs: list[RecordedGraphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_and_replayed(graphs, monkeypatch, **{"kind": "chain", **changes})
    assert len(graphs) == (2 if "sweep_memory" in changes else 1)


def test_a_search_that_goes_on_from_a_checkpoint_has_the_bits_of_one_that_was_not_stopped(
    graphs: list[RecordedGraphs], tmp_path: Path
) -> None:
    search = {"kind": "normed", "crop": 1, "epochs": 3, "optimizer": "adamw", "batch_size": 20}
    _, _, whole = trained(planter(**search), one_pass.sweep_shared)
    with Run.create(tmp_path / "run", {}) as run:
        stopped = planter(run=run, **search)
        once = ReplayedTrainer.run_epoch

        def stop_in_the_second(self: ReplayedTrainer) -> Any:
            if self.epoch == 1:
                stopped.around.session.request_stop()
            return once(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReplayedTrainer, "run_epoch", stop_in_the_second)
            with pytest.raises(Interrupted):
                trained(stopped, one_pass.sweep_shared)
        _, _, resumed = trained(planter(run=run, **search), one_pass.sweep_shared)
    assert all(torch.equal(left, right) for left, right in zip(whole, resumed, strict=True))


def test_state_may_be_put_back_behind_a_capture(graphs: list[RecordedGraphs], monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that is loaded captures anew: its optimizer's state lies elsewhere."""
    once, seen = ReplayedTrainer.run_epoch, []

    def repeated(self: ReplayedTrainer) -> Any:
        """The epoch, taken back, and again."""
        before = [{name: value.clone() for name, value in own.items()} for own in self.tensors()]
        state = {"learners": [learner.state() for learner in self._learners]}
        once(self)
        ends = [torch.cat([value.flatten().double() for value in own.values()]) for own in self.tensors()]
        self.load(before, state, self.epoch - 1)
        result = once(self)
        again = [torch.cat([value.flatten().double() for value in own.values()]) for own in self.tensors()]
        seen.append(all(torch.equal(left, right) for left, right in zip(ends, again, strict=True)))
        return result

    monkeypatch.setattr(ReplayedTrainer, "run_epoch", repeated)
    trained(planter("chain", epochs=1), one_pass.sweep_shared)
    assert seen == [True]
    assert graphs[0].captures == 6


class Waits(torch.nn.Module):
    """A teacher that asks the device for a number: no step of it can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)).repeat(1, 2)[:, :5] * self.scale.item()


class Refusing(RecordedGraphs):
    def capture(self, step: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("memory", [1 << 20, 0], ids=["views", "no views"])
def test_what_cannot_be_captured_is_run_and_said(
    refuses: bool, memory: int, graphs: list[RecordedGraphs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The teacher need not be captured: it is asked before an epoch begins."""
    from plantops.planting import Planter, PlanterConfig

    if refuses:
        monkeypatch.setattr(one_pass, "make_graphs", lambda around: Refusing())
    config = PlanterConfig(channels=2, epochs=2, batch_size=12, crop=1, init="kaiming", teacher_cache_memory=memory)
    ends = []
    for captured in (True, False):
        if not captured:
            monkeypatch.setattr(one_pass, "make_graphs", lambda around: None)
        with Run.create(tmp_path / str(captured), {}) as run:
            plain = planter("chain")
            around = plain.around
            search = Planter(plain.initial.model, Waits(), around.train, around.val, config, session=Session(run))
            ends.append(trained(search, one_pass.sweep_shared)[2])
    assert all(torch.equal(left, right) for left, right in zip(*ends, strict=True))
    said = [record.get("steps_reason") for record in records(tmp_path / "True", "sweep")]
    assert said[1:] == (["operation not permitted when stream is capturing"] if refuses else [])
    assert len(records(tmp_path / "False", "sweep")) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"objective": "adversarial"}, "a discriminator is"), ({"precision": "fp16"}, "loss scaling looks"), ({}, None)],
    ids=["adversarial", "fp16", "kl"],
)  # fmt: skip
def test_the_run_says_whether_steps_are_captured(changes: dict[str, Any], reason: str | None) -> None:
    search = planter("chain", **changes)
    assert one_pass._run_reason(search.around) == "they are not on a GPU"
    said = one_pass.run_reason(search.config.recipe())
    assert said is None if reason is None else said is not None and reason in said


def test_fifty_rounds_hold_no_more_than_two(graphs: list[RecordedGraphs]) -> None:
    alive: weakref.WeakSet[RecordedGraphs] = weakref.WeakSet()

    def sweep(*args: Any) -> Any:
        candidates = one_pass.sweep_shared(*args)
        alive.update(graphs)
        graphs.clear()
        return candidates

    held = held_after_rounds(planter("chain", epochs=1), sweep, 50)
    assert held[-1] == held[1]
    assert not alive


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_a_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("augmented", AUGMENTED, ids=["plain", "flips", "crops"])
def test_graphs_on_the_device(
    augmented: dict[str, Any], optimizer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA graphs against the same static steps run one by one: capture, replay, smaller last batch, branches."""

    def search(run: Run | None = None) -> Any:
        return planter("chain", run=run, device="cuda", optimizer=optimizer, **augmented)

    with Run.create(tmp_path / "run", {}) as run:
        _, start, replayed = trained(search(run), one_pass.sweep_shared)
    assert [record["steps"] for record in records(tmp_path / "run", "sweep")] == ["captured"]
    monkeypatch.setattr(one_pass, "make_graphs", lambda around: None)
    _, _, run_one_by_one = trained(search(), one_pass.sweep_shared)
    for begin, want, got in zip(start, run_one_by_one, replayed, strict=True):
        assert (got - want).norm() <= 1e-5 * (want - begin).norm()


@on_a_gpu
def test_a_capture_leaves_no_trace_and_replays_see_new_values() -> None:
    device = torch.device("cuda")
    graphs = CudaGraphs(device)
    total, step = torch.zeros((), device=device), torch.ones((), device=device)
    before = torch.cuda.get_rng_state(device)

    def add() -> None:
        with graphs.branches(2) as branches:
            with branches[0]:
                doubled = step * 2
            with branches[1]:
                tripled = step * 3
        total.add_(doubled + tripled)

    replay = graphs.capture(add)
    assert total.item() == 0
    replay()
    step.fill_(10)
    replay()
    assert total.item() == 55
    assert torch.equal(before, torch.cuda.get_rng_state(device))
    graphs.close()


@on_a_gpu
def test_memory_comes_back_between_rounds() -> None:
    search = planter("chain", epochs=1, device="cuda")
    held = []
    for _ in range(6):
        candidates, _, _ = trained(search, one_pass.sweep_shared)
        search.around.session.forget(candidate.key for candidate in candidates)
        search.around.session._finished.clear()
        gc.collect()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert held[-1] <= held[1]


@on_a_gpu
def test_a_second_round_captures_in_under_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled again for it; warming up counts."""
    spent: list[float] = []

    def timed(method: Any) -> Any:
        def call(self: CudaGraphs, step: Any) -> Any:
            torch.cuda.synchronize()
            began = time.perf_counter()
            result = method(self, step)
            torch.cuda.synchronize()
            spent.append(time.perf_counter() - began)
            return result

        return call

    for name in ("warm_up", "capture"):
        monkeypatch.setattr(CudaGraphs, name, timed(getattr(CudaGraphs, name)))
    search = planter("chain", epochs=1, device="cuda")
    trained(search, one_pass.sweep_shared)
    search.around.session._finished.clear()
    spent.clear()
    trained(search, one_pass.sweep_shared)
    assert len(spent) == 6  # two sizes of a batch and the held-out part
    assert sum(spent) < 1.0


@on_a_gpu
def test_more_candidates_than_branches() -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    total = torch.zeros(20, device="cuda")

    def step() -> None:
        with graphs.branches(20) as branches:
            for place, branch in enumerate(branches):
                with branch:
                    total[place] += place

    replay = graphs.capture(step)
    replay()
    replay()
    assert torch.equal(total.cpu(), 2.0 * torch.arange(20))
    graphs.close()
