"""A program that can be killed anywhere and goes on: finished work is remembered and not done again.

A run is an ordinary program made of named pieces of work: networks that are trained (``fit``), results that are
computed once (``once``) and records that are written in between (``record``). A checkpoint holds what finished pieces
gave, the piece under way (weights, optimizer, epoch) and how many records had been written. To resume, the same program
runs from its beginning: finished pieces answer at once from memory, the piece under way takes up its state, and records
that are on the disk already are not written twice. So the program itself never asks whether it was interrupted, and all
that persists is in ``Session``.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from plantops.train.checkpoint import Checkpoint, CheckpointError
from plantops.train.loop import EpochResult, Trainer
from plantops.train.progress import NullProgress, Progress
from plantops.train.run import Run
from plantops.train.session_checkpoint import FORMAT, UNDER_WAY, Stored, checkpoint_of, config_hash
from plantops.train.together import Alone, Part, Share, Together


class Interrupted(Exception):
    """The session was asked to stop, and has stopped behind a checkpoint."""


@dataclass
class Finished:
    """A piece of work that is done.

    Attributes:
        result: JSON values.
        tensors: what training changed; empty once ``Session.forget`` was told that nobody needs it.
        records: how many records it wrote.
        epochs: how many epochs it trained.
    """

    result: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    records: int = 0
    epochs: int = 0


@dataclass
class _UnderWay:
    """The training that a checkpoint caught in the middle: of one network, or of several together."""

    keys: list[str]
    epoch: int
    records: int
    seconds: list[float]
    tensors: list[Mapping[str, Tensor]]
    state: Mapping[str, Any]


class Session:
    """The memory of a run; without a ``run`` it lives in this process only.

    Args:
        run: where records and checkpoints go. The session takes up its newest checkpoint, if there is one.
        checkpoint_seconds: at the end of an epoch or of a piece of work a checkpoint is written when the last one is at
            least this old.
        progress: told about every epoch.
        logger: gets every record as well (TensorBoard).
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        checkpoint_seconds: float = 30.0,
        progress: Progress | None = None,
        logger: Callable[[str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.run = run
        self.progress: Progress = NullProgress() if progress is None else progress
        self.warning: str | None = None
        self._logger = logger
        self._finished: dict[str, Finished] = {}
        self._under_way: _UnderWay | None = None
        self._records = 0
        self._written = 0
        self._step = 0
        self._interval = checkpoint_seconds
        self._last_checkpoint = time.monotonic()
        self._stop = False
        if run is not None:
            self._take_up(run)

    @property
    def workers(self) -> int:
        """How many processes can train shares at the same time."""
        return 1

    @property
    def complete(self) -> bool:
        """Whether the program came to its end, in this process or before."""
        return "complete" in self._finished

    @property
    def epochs_done(self) -> int:
        """Epochs of finished work and of the work under way: what a resumed run need not train again."""
        under_way = self._under_way.epoch * len(self._under_way.keys) if self._under_way is not None else 0
        return under_way + sum(work.epochs for work in self._finished.values())

    def request_stop(self) -> None:
        """Stop at the next safe point: it writes a checkpoint and raises ``Interrupted``. Safe in a signal handler."""
        self._stop = True

    def record(self, kind: str, **fields: Any) -> None:
        """One line of metrics.jsonl, unless a resumed run has it already; a finished round is shown either way."""
        self._records += 1
        if kind == "round":
            self.progress.round_done(fields)
        if self._records <= self._written:
            return
        if self.run is not None:
            self.run.log(kind, **fields)
        if self._logger is not None:
            self._logger(kind, fields)

    def fit(
        self,
        key: str,
        make_trainer: Callable[[], Trainer],
        *,
        phase: str,
        name: str,
        may_diverge: bool = False,
        **labels: Any,
    ) -> Finished:
        """Train to the end, once.

        Args:
            key: names this work in the run.
            make_trainer: called only when there is something left to train.
            phase, name, labels: go into every epoch's record.
            may_diverge: the program can do without it: a training whose loss is not finite ends there.

        Returns:
            ``result`` holds the last epoch's ``train_loss``, ``train_accuracy``, ``val_loss``, ``val_accuracy``, ``lr``
            and the whole training's ``seconds``; ``tensors`` what changed, which the caller loads into its network.

        Raises:
            RunError: the training loss of an epoch is not finite, and must be.
        """
        part = Part(key, name, labels)
        indispensable = None if may_diverge else name
        return self.fit_together([part], lambda: Alone(make_trainer(), indispensable), phase=phase)[0]

    def fit_together(
        self, parts: Sequence[Part], make_trainer: Callable[[], Together], *, phase: str
    ) -> list[Finished]:
        """``fit`` for several networks that are trained in one pass, each with a key and records of its own."""
        keys = [part.key for part in parts]
        if all(key in self._finished for key in keys):
            return [self._replay(key) for key in keys]
        trainer = make_trainer()
        seconds, first_record = [0.0] * len(parts), self._records
        results: list[dict[str, Any]] = [{} for _ in parts]
        if self._under_way is not None:
            under_way = self._under_way
            if under_way.keys != keys:
                raise CheckpointError(
                    f"the checkpoint is in the middle of {', '.join(under_way.keys)}, "
                    f"but the run comes to {', '.join(keys)}"
                )
            _take_up_training(trainer, under_way)
            seconds = list(under_way.seconds)
            self._records += under_way.records
            self._under_way = None
        with closing(trainer):
            while not trainer.finished:
                epochs = trainer.run_epoch()
                for place, (part, epoch) in enumerate(zip(parts, epochs, strict=True)):
                    seconds[place] += epoch.seconds
                    self._log_epoch(epoch, phase, part)
                    results[place] = _last(epoch)
                self._show(phase, parts, epochs)
                if not trainer.finished:
                    self._safe_point(partial(self._capture, keys, trainer, first_record, seconds))
        records = self._records - first_record
        for place, (key, trained) in enumerate(zip(keys, trainer.tensors(), strict=True)):
            tensors = {name: tensor.detach().clone() for name, tensor in trained.items()}
            # The records of all count as the first one's: they are replayed together or not at all.
            result = {**results[place], "seconds": seconds[place]}
            self._finished[key] = Finished(result, tensors, 0 if place else records, trainer.epoch)
        self._safe_point(None)
        return [self._finished[key] for key in keys]

    def fit_spread(self, shares: Sequence[Share], *, phase: str) -> list[list[Finished]]:
        """``fit_together`` for shares of work that the session's workers can train at the same time."""
        return [self.fit_together(share.parts, share.make_trainer, phase=phase) for share in shares]

    def once(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result of JSON values that is computed at most once in the life of a run (up to its last checkpoint)."""
        if key not in self._finished:
            self._finished[key] = Finished(compute())
        return self._finished[key].result

    def tensors(self, key: str) -> dict[str, Tensor]:
        """What the finished training ``key`` changed."""
        return self._finished[key].tensors

    def forget(self, keys: Iterable[str]) -> None:
        """The tensors of finished work that nothing will be built from."""
        for key in keys:
            self._finished[key].tensors = {}

    def finish(self) -> None:
        """The program has come to its end; a last checkpoint says so."""
        if self.complete:
            return
        self._finished["complete"] = Finished({})
        self.checkpoint()

    def checkpoint(self) -> None:
        """Write a checkpoint now, between two pieces of work."""
        self._save(None)

    def _capture(self, keys: list[str], trainer: Together, first_record: int, seconds: list[float]) -> _UnderWay:
        records = self._records - first_record
        return _UnderWay(keys, trainer.epoch, records, seconds, list(trainer.tensors()), trainer.state())

    def _replay(self, key: str) -> Finished:
        work = self._finished[key]
        self._records += work.records
        return work

    def _log_epoch(self, epoch: EpochResult, phase: str, part: Part) -> None:
        fields = dataclasses.asdict(epoch)
        seconds = fields.pop("seconds")
        labels = {"round": 0, "site": None, **part.labels}
        self.record("epoch", phase=phase, name=part.name, **labels, **fields, epoch_seconds=seconds)

    def _show(self, phase: str, parts: Sequence[Part], epochs: Sequence[EpochResult]) -> None:
        """Of networks that train together the best is shown."""
        losses = [math.inf if finite(epoch.val_loss) is None else epoch.val_loss for epoch in epochs]
        place = min(range(len(parts)), key=losses.__getitem__)  # type: ignore[arg-type]
        part, best = parts[place], epochs[place]
        self.progress.epoch(
            phase,
            part.name,
            part.labels.get("round") or None,
            best.epoch,
            best.epochs,
            best.train_loss,
            best.val_loss,
            best.lr,
            len(parts),
        )

    def _safe_point(self, under_way: Callable[[], _UnderWay] | None) -> None:
        due = time.monotonic() - self._last_checkpoint >= self._interval
        if due or self._stop:
            self._save(None if under_way is None else under_way())
        if self._stop:
            raise Interrupted

    def _save(self, under_way: _UnderWay | None) -> None:
        if self.run is None:
            return
        tensors = {
            f"finished/{key}/{name}": tensor
            for key, work in self._finished.items()
            for name, tensor in work.tensors.items()
        }
        structure: dict[str, Any] = {
            "format": FORMAT,
            "records": self._records,
            "metrics_bytes": self.run.metrics_length(),
            "config_sha256": config_hash(self.run.config),
            "finished": {
                key: {
                    "result": work.result,
                    "records": work.records,
                    "epochs": work.epochs,
                    "tensors": sorted(work.tensors),
                }
                for key, work in self._finished.items()
            },
            "under_way": None,
        }
        state: dict[str, Any] = {}
        if under_way is not None:
            for place, own in enumerate(under_way.tensors):
                tensors.update({f"under_way/{place}/{name}": tensor for name, tensor in own.items()})
            state = dict(under_way.state)
            structure["under_way"] = {
                "keys": under_way.keys,
                "epoch": under_way.epoch,
                "records": under_way.records,
                "seconds": under_way.seconds,
            }
        self._step += 1
        self.run.checkpoints.save(self._step, tensors, structure, state)
        self._last_checkpoint = time.monotonic()

    @staticmethod
    def ended(run: Run) -> bool:
        """Whether ``run`` came to its end, without taking anything up. Raises RunError as taking it up does."""
        checkpoint = checkpoint_of(run)
        return checkpoint is not None and "complete" in checkpoint.structure["finished"]

    def _take_up(self, run: Run) -> None:
        checkpoint = checkpoint_of(run)
        if checkpoint is None:
            run.cut_metrics(0)
            return
        structure = checkpoint.structure
        self.warning = checkpoint.warning
        self._step = checkpoint.step
        self._written = structure["records"]
        for key, entry in structure["finished"].items():
            tensors = _below(checkpoint, f"finished/{key}/")
            if "tensors" in entry and sorted(tensors) != entry["tensors"]:
                raise CheckpointError(
                    f"{checkpoint.path}: the tensors of {key} are not the {len(entry['tensors'])} named."
                )
            result = Stored(f"{checkpoint.path}: {key}", entry["result"])
            self._finished[key] = Finished(result, tensors, entry["records"], entry["epochs"])
        if structure["under_way"] is not None:
            fields = {name: structure["under_way"][name] for name in UNDER_WAY}
            own: list[Mapping[str, Tensor]] = [
                _below(checkpoint, f"under_way/{place}/") for place in range(len(fields["keys"]))
            ]
            self._under_way = _UnderWay(**fields, tensors=own, state=checkpoint.state)
        run.cut_metrics(structure["metrics_bytes"])


def _take_up_training(trainer: Together, under_way: _UnderWay) -> None:
    """Put the trainer where the checkpoint was.

    Raises:
        CheckpointError: what the checkpoint holds is not of this training.
    """
    where = f"the checkpoint in the middle of {', '.join(under_way.keys)} does not fit this training"
    for key, own, stored in zip(under_way.keys, trainer.tensors(), under_way.tensors, strict=True):
        facts = [{name: (str(t.dtype), list(t.shape)) for name, t in tensors.items()} for tensors in (own, stored)]
        for name in sorted(facts[0].keys() | facts[1].keys()):
            expected, got = (fact.get(name, "nothing") for fact in facts)
            if expected != got:
                raise CheckpointError(f"{where}: {name} of {key} must be {expected}, got {got}.")
    try:
        trainer.load(under_way.tensors, under_way.state, under_way.epoch)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its state is of another one ({type(error).__name__}: {error}).") from error


def _last(epoch: EpochResult) -> dict[str, Any]:
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
    return {name: finite(getattr(epoch, name)) for name in names}


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: a training that diverged has None for a loss."""
    return value if value is not None and math.isfinite(value) else None


def _below(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(prefix)}
