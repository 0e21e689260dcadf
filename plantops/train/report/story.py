"""What a run's records say, put in the order in which a reader wants it. Reads files of runs and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plantops.train.report.records import checked
from plantops.train.report.verdict import found, verdict
from plantops.train.run import METRICS, RunRecord, read_run

Record = Mapping[str, Any]

OWN_PATH = ("initial", "planted", "pruned", "finetuned", "retrained")
"""Roles of networks on the planted network's own path."""


@dataclass
class Story:
    """One run, and other runs to show beside it.

    Attributes:
        rounds: the ``round`` records in order; round 0 is the initial network.
        candidates: the ``candidate`` records, by round.
        prunings: the ``pruned`` records, by the round that they came after.
        teacher: the ``teacher`` record: what it knows more than the initial network; None where it was not compared.
        discarded: the ``discarded`` records: trainings that made a network worse, so the one before was kept.
        networks: the ``network`` records in order: the only place where the test part appears.
        curves: the ``epoch`` records of whole networks (not of candidates), by network name.
        stop: why the search ended; None where it has not.
        others: runs to compare with.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    parts: dict[str, Record]
    rounds: list[Record]
    candidates: dict[int, list[Record]]
    prunings: dict[int, Record]
    teacher: Record | None
    discarded: Sequence[Record]
    networks: list[Record]
    curves: dict[str, list[Record]]
    stop: Record | None
    others: list[Story]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def data(self) -> str:
        return str(self.config.get("data", "unknown data"))

    @property
    def command(self) -> str | None:
        """The command that made the run; None where a program of the user's own did."""
        command = self.config.get("command")
        return None if command is None else str(command)

    @property
    def searches(self) -> bool:
        """Whether this is a search, or is going to be one."""
        return self.command == "plant" or bool(self.rounds or self.candidates)

    @property
    def complete(self) -> bool:
        """Whether the run came to its end. A command measures and records its networks last of all."""
        return bool(self.networks) or (self.command is None and self.stop is not None)

    def network(self, role: str) -> Record | None:
        """The network with this role, if it is finished."""
        return next((record for record in self.networks if record.get("role") == role), None)

    def of_role(self, role: str) -> list[Record]:
        """All networks with this role, by parameters."""
        found = [record for record in self.networks if record.get("role") == role]
        return sorted(found, key=lambda record: record["parameters"])

    def teacher_score(self, key: str) -> float | None:
        """A score of the teacher (``val_loss`` and so on): its record's, else its last epoch's."""
        teacher = self.network("teacher")
        if teacher is None and not key.startswith("test") and self.curves.get("teacher"):
            teacher = self.curves["teacher"][-1]
        return None if teacher is None else teacher.get(key)

    def grown_losses(self) -> dict[int, float | None]:
        """For each round with candidates: the held-out loss of the network before it, which is 'do not grow'."""
        before = {record["round"] + 1: record.get("val_loss") for record in self.rounds}
        before |= {number + 1: record["val_loss"][1] for number, record in self.prunings.items()}
        return {number: before.get(number) for number in self.candidates}

    def winners(self, number: int) -> list[str]:
        """The sites that round ``number`` grew."""
        return [site for record in self.rounds if record["round"] == number for site in sites_of(record)]

    def state(self) -> str | None:
        """What to tell a reader of a run that has not come to its end; None for one that has."""
        if self.complete:
            return None
        if not (self.curves or self.rounds or self.candidates or self.networks):
            return "Nothing has been trained in this run yet."
        grown = max((record["round"] for record in self.rounds), default=None)
        begun = max(self.candidates, default=0)
        if grown is None:
            where = f"so far: {', '.join(self.curves)}"
        elif begun > grown and self.stop is None:
            where = f"it is in round {begun}, {_count(len(self.candidates[begun]), 'candidate')} of it trained"
        else:
            where = f"{_count(grown, 'round')} of growth finished"
        again = "start its program again" if self.command is None else f"plantops {self.command} --resume {self.path}"
        return (
            f"This run has not come to its end ({where}). Test scores appear only when it has. "
            f"If nothing is working on it, go on with: {again}"
        )


def read_story(path: str | Path, compare: Sequence[str | Path] = ()) -> Story:
    """Read a run, and the runs to compare it with.

    Raises:
        RunError: a folder that is no run, or is damaged.
    """
    return tell(read_run(path), [tell(read_run(other)) for other in compare])


def tell(run: RunRecord, others: Sequence[Story] = ()) -> Story:
    """Sort a run's records.

    Raises:
        RunError: a record without a field that is needed, or with one of another kind; names the line.
    """
    run = dataclasses.replace(run, metrics=checked(run.metrics, run.path / METRICS))
    candidates: dict[int, list[Record]] = {}
    for record in run.of("candidate"):
        candidates.setdefault(record["round"], []).append(record)
    curves: dict[str, list[Record]] = {}
    for record in run.of("epoch"):
        if record.get("phase") != "candidate":
            curves.setdefault(str(record.get("name") or record.get("phase")), []).append(record)
    stops, teachers = run.of("stop"), run.of("teacher")
    back = [record for record in run.of("move") if not record["kept"]]
    undone = {number for record in back for number in range(record["first"], record["last"] + 1)}
    shrunk = [record["first"] - 1 for record in back]
    prunings = [r for r in run.of("pruned") if r.get("max_loss_increase") is not None or r["round"] not in shrunk]
    return Story(
        path=run.path,
        config=run.config,
        environment=run.environment,
        parts={record["part"]: record for record in run.of("part")},
        rounds=sorted((r for r in run.of("round") if r["round"] not in undone), key=lambda record: record["round"]),
        candidates={number: own for number, own in sorted(candidates.items()) if number not in undone},
        prunings={record["round"]: record for record in prunings},
        teacher=teachers[-1] if teachers else None,
        discarded=run.of("discarded"),
        networks=list(run.of("network")),
        curves=curves,
        stop=stops[-1] if stops else None,
        others=list(others),
    )


def headline(story: Story) -> list[str]:
    """Sentences that say what came out, whatever it is."""
    teacher, initial = story.network("teacher"), story.network("initial")
    planted = found(story.networks)
    judged = verdict(story.networks, story.parts.get("test", {}).get("samples") or 0)
    sentences = [] if judged is None else [judged]
    if initial is not None and planted is not None:
        before, after = initial.get("test_accuracy"), planted.get("test_accuracy")
        rounds = story.rounds[-1]["round"] if story.rounds else 0
        sentence = (
            f"{_count(rounds, 'round')} of planting took the network from {initial['parameters']:,} to "
            f"{planted['parameters']:,} parameters"
        )
        if before is not None and after is not None:
            verb = "rose" if after > before else "fell" if after < before else "stayed"
            change = 100 * (after - before)
            sentence += f"; its test accuracy {verb} from {percent(before)} to {percent(after)} ({change:+.1f} points)"
        sentences.append(f"{sentence}.")
        if story.prunings:
            gone = sum(sum(record["removed"].values()) for record in story.prunings.values())
            sentences.append(f"Pruning between rounds took away {_count(gone, 'channel')} on the way.")
    elif story.networks:
        for record in story.networks:
            sentences.append(
                f"{record['name']}: {record['parameters']:,} parameters, test accuracy "
                f"{percent(record.get('test_accuracy'))}, test loss {number(record.get('test_loss'))}."
            )
        return sentences
    if teacher is not None and planted is not None:
        share = planted["parameters"] / teacher["parameters"]
        sentences.append(
            f"The teacher has {teacher['parameters']:,} parameters and reaches "
            f"{percent(teacher.get('test_accuracy'))}: the planted network has {100 * share:.1f} % of its parameters."
        )
    nearest = None if judged is not None else _nearest(planted, story)
    if nearest is not None and planted is not None:
        sentences.append(
            f"The uniform network nearest in size, {nearest['name']} with {nearest['parameters']:,} parameters, "
            f"reaches {percent(nearest.get('test_accuracy'))}."
        )
    if story.stop is not None:
        sentences.append(f"The search ended: {stop_words(story.stop['reason'])}.")
    return sentences


STOPS = {
    "max_rounds": "it has had all the rounds that were allowed",
    "max_params": "every further growth would have had more parameters than were allowed",
}
"""What the reasons of a ``stop`` record mean that are no sentence of their own."""


def stop_words(reason: str) -> str:
    """Why a search ended, as part of a sentence."""
    return STOPS.get(reason, reason)


def warnings(story: Story) -> list[str]:
    """What a reader has to know before the numbers are believed."""
    found = []
    verdict = story.teacher
    if verdict is not None and verdict.get("clear") is False:
        own, gain, error = (verdict.get(name) for name in ("val_loss", "gain", "gain_error"))
        spread = "" if error is None else f" (standard error {error:.4f})"
        other = None if own is None or gain is None else own + gain
        found.append(
            f"The teacher had little to teach: its held-out loss {number(own)} is not clearly below the initial "
            f"network's {number(other)}; the difference is {number(gain)}{spread}."
        )
    elif verdict is None and story.rounds:
        own, other = story.teacher_score("val_loss"), story.rounds[0].get("val_loss")
        if own is not None and other is not None and own >= other:
            found.append(
                f"The teacher had little to teach: its held-out loss {number(own)} is not below the initial network's "
                f"{number(other)}."
            )
    for record in story.discarded:
        before, after = record["val_loss"]
        found.append(
            f"{record['name']} was taken back: it would have changed the held-out loss from {number(before)} to "
            f"{'something not finite' if after is None else number(after)}."
        )
    return found


def _nearest(planted: Record | None, story: Story) -> Record | None:
    uniform = [record for teller in (story, *story.others) for record in teller.of_role("uniform")]
    if planted is None or not uniform:
        return None
    return min(uniform, key=lambda record: abs(record["parameters"] - planted["parameters"]))


def sites_of(record: Record) -> list[str]:
    """The sites that the round of this record grew."""
    return str(record["grown"]).split(", ") if record.get("grown") else []


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def seconds(value: float | None) -> str:
    """``850 ms``, ``12.3 s``, ``4 min 05 s``, ``1 h 02 min``."""
    if value is None:
        return "-"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _count(amount: int, thing: str) -> str:
    return f"{amount:,} {thing}" if amount == 1 else f"{amount:,} {thing}s"
