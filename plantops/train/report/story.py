"""What a run's records say, put in the order in which a reader wants it. Reads files of runs and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plantops.train.run import RunRecord, read_run

Record = Mapping[str, Any]

OWN_PATH = ("initial", "planted", "pruned", "finetuned")
"""Roles of networks on the planted network's own path."""


@dataclass
class Story:
    """One run, and other runs to show beside it.

    Attributes:
        rounds: the ``round`` records in order; round 0 is the initial network.
        candidates: the ``candidate`` records, by round.
        prunings: the ``pruned`` records, by the round that they were behind.
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
    """Sort a run's records."""
    candidates: dict[int, list[Record]] = {}
    for record in run.of("candidate"):
        candidates.setdefault(record["round"], []).append(record)
    curves: dict[str, list[Record]] = {}
    for record in run.of("epoch"):
        if record.get("phase") != "candidate":
            curves.setdefault(str(record.get("name") or record.get("phase")), []).append(record)
    stops = run.of("stop")
    return Story(
        path=run.path,
        config=run.config,
        environment=run.environment,
        parts={record["part"]: record for record in run.of("part")},
        rounds=sorted(run.of("round"), key=lambda record: record["round"]),
        candidates=dict(sorted(candidates.items())),
        prunings={record["round"]: record for record in run.of("pruned")},
        networks=list(run.of("network")),
        curves=curves,
        stop=stops[-1] if stops else None,
        others=list(others),
    )


def headline(story: Story) -> list[str]:
    """Sentences that say what came out, whatever it is."""
    teacher, initial = story.network("teacher"), story.network("initial")
    planted = story.network("finetuned") or story.network("planted")
    sentences = []
    if initial is not None and planted is not None:
        change = 100 * (planted["test_accuracy"] - initial["test_accuracy"])
        verb = "rose" if change > 0 else "fell" if change < 0 else "stayed"
        rounds = story.rounds[-1]["round"] if story.rounds else 0
        sentences.append(
            f"{_count(rounds, 'round')} of planting took the network from {initial['parameters']:,} to "
            f"{planted['parameters']:,} parameters; its test accuracy {verb} from {percent(initial['test_accuracy'])} "
            f"to {percent(planted['test_accuracy'])} ({change:+.1f} points)."
        )
        if story.prunings:
            gone = sum(sum(record["removed"].values()) for record in story.prunings.values())
            sentences.append(f"Pruning between rounds took away {_count(gone, 'channel')} on the way.")
    elif story.networks:
        for record in story.networks:
            sentences.append(
                f"{record['name']}: {record['parameters']:,} parameters, test accuracy "
                f"{percent(record['test_accuracy'])}, test loss {number(record['test_loss'])}."
            )
        return sentences
    if teacher is not None and planted is not None:
        share = planted["parameters"] / teacher["parameters"]
        sentences.append(
            f"The teacher has {teacher['parameters']:,} parameters and reaches {percent(teacher['test_accuracy'])}: "
            f"the planted network has {100 * share:.1f} % of its parameters."
        )
    nearest = _nearest(planted, story)
    if nearest is not None and planted is not None:
        sentences.append(
            f"The uniform network nearest in size, {nearest['name']} with {nearest['parameters']:,} parameters, "
            f"reaches {percent(nearest['test_accuracy'])}."
        )
    if story.stop is not None:
        sentences.append(f"The search ended: {story.stop['reason']}.")
    return sentences


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
