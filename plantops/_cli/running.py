"""A run from the outside: its folder, its session, Ctrl-C, and what is printed before and after."""

from __future__ import annotations

import dataclasses
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch

from plantops._cli.mistakes import INTERRUPTED, Mistake
from plantops._cli.options import MachineOptions, by_topic
from plantops._cli.parse import (
    RESUME_FLAG,
    WITH_RESUME,
    as_flag,
    build,
    defaults_of,
    resolve,
    resolve_again,
    stored_options,
    take,
)
from plantops.train.progress import make_progress, table_lines
from plantops.train.ranked_session import RankedSession
from plantops.train.ranks import ranks_of_environment
from plantops.train.run import CONFIG, Run, holds_run, read_run
from plantops.train.session import Session

Options = TypeVar("Options", bound=MachineOptions)


@contextmanager
def opened(kind: type[Options], command: str, arguments: list[str]) -> Iterator[tuple[Options, Run | None]]:
    """The resolved options, and with ``--resume RUN`` the run that goes on; it is given free at the end.

    Raises:
        Mistake, RunError: options that do not fit, a run that cannot be used or has ended already.
    """
    folder, rest = take(arguments, RESUME_FLAG)
    ranks = ranks_of_environment()
    repeated: Options | None = None
    if folder is None:
        options = resolve(kind, command, rest)
        # torchrun repeats the command when a process has died; the run that is there already then goes on.
        if ranks is None or not ranks.json(options.out is not None and holds_run(options.out), 0):
            yield options, None
            return
        folder, repeated = options.out, options
    assert folder is not None
    if ranks is not None and ranks.rank > 0:
        yield repeated or resolve_again(kind, command, read_run(folder).config, rest), None
        return
    with Run.open(folder) as run:
        made_by = run.config.get("command")
        if made_by != command:
            raise Mistake(f"{folder} is a run of plantops {made_by}: go on with plantops {made_by} --resume {folder}.")
        if repeated is not None:
            _check_same(kind, repeated, run)
        options = repeated or resolve_again(kind, command, run.config, rest)
        if Session.ended(run) and not missing(run, options):
            raise Mistake(
                f"{folder} has ended already: plantops report {folder} shows it; start a new run to go further."
            )
        yield options, run


def _check_same(kind: type[Options], options: Options, run: Run) -> None:
    """Raises Mistake where a repeated command asks for other numbers than those of the run that is there."""
    stored = build(kind, stored_options(run.config), "the run's config.json")
    for field in dataclasses.fields(options):
        now, then = getattr(options, field.name), getattr(stored, field.name)
        if now != then and field.name not in (*WITH_RESUME, "out"):
            raise Mistake(
                f"{run.path} holds a run with {as_flag(field.name)} {then}, and {now} is asked for: give the run's own "
                "options to go on with it, or another --out."
            )


def missing(run: Run, options: MachineOptions) -> list[str]:
    """What a run that has ended lacks of its files: a process may be killed between its last checkpoint and these."""
    names = [record.get("name") for record in run.metrics() if record["kind"] == "network"]
    files = [f"networks/{name}/structure.json" for name in names]
    files += ["report.html"] if options.report else []
    return [file for file in files if not (run.path / file).exists()]


def going_on(session: Session) -> str:
    """What a run that is taken up says first."""
    if session.complete:
        return f"All {session.epochs_done} epochs are done: writing what is missing."
    return f"Going on after {session.epochs_done} epochs."


def create_run(options: MachineOptions, command: str, data: str) -> Run:
    """The folder of a new run, with the resolved configuration in it."""
    config = {"command": command, **dataclasses.asdict(options)}
    return Run.create(default_folder(command, data) if options.out is None else Path(options.out), config)


def default_folder(command: str, data: str) -> Path:
    """``runs/COMMAND-DATA-NUMBER`` with the first number that is free."""
    word = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in data.rpartition("/")[2])
    number = 1
    while (Path("runs") / f"{command}-{word}-{number}").exists():
        number += 1
    return Path("runs") / f"{command}-{word}-{number}"


@contextmanager
def session_of(run: Run, options: MachineOptions, device: torch.device) -> Iterator[Session]:
    """A session that Ctrl-C stops after a checkpoint; the second Ctrl-C stops at once."""
    progress = make_progress(options.progress)
    more: dict[str, Any] = {
        "checkpoint_seconds": options.checkpoint_seconds,
        "progress": progress,
        "logger": _tensorboard(run) if options.tensorboard else None,
    }
    ranks = ranks_of_environment()
    session = Session(run, **more) if ranks is None else RankedSession(ranks, run, device=device, **more)
    for text in (session.warning, *_changes(run)):
        if text:
            print(f"warning: {text}", file=sys.stderr)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        session.request_stop()
        progress.note("Stopping at the end of this epoch (Ctrl-C again: at once).")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield session
    finally:
        signal.signal(signal.SIGINT, before)
        progress.close()


def _changes(run: Run) -> list[str]:
    """Only a run that goes on can differ from the machine that began it."""
    differences = run.environment_differences()
    if not differences:
        return []
    return [f"what follows can differ in the last bits from an uninterrupted run: {'; '.join(differences)}"]


def interrupted(command: str, run: Run) -> int:
    """Says how to go on."""
    print(f"Stopped. To go on: plantops {command} --resume {run.path}", file=sys.stderr)
    return INTERRUPTED


def echo(command: str, options: MachineOptions, run: Run) -> None:
    """What was asked for besides the defaults; the run's config.json has all."""
    print(f"plantops {command} in {run.path} (all options: {run.path / CONFIG})")
    data = getattr(options, "data", None)
    text = f"{data}, " if data else ""
    changed = " ".join(_changed(command, options))
    text += f"its defaults but {changed}" if changed else "its defaults"
    print(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False), flush=True)


def _changed(command: str, options: MachineOptions) -> list[str]:
    """The options that differ from the defaults of their data set and preset, as flags."""
    own = dataclasses.asdict(options)
    known = defaults_of(type(options), command, [], own)
    flags = []
    for field in (field for _, fields in by_topic(type(options)) for field in fields):
        value, flag = own[field.name], as_flag(field.name)
        if value == known.get(field.name, field.default) or field.name in ("out", "data", "progress"):
            continue
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:
            flags.append(f"{flag} {value}")
    return flags


def show_table(rows: list[dict[str, Any]], title: str) -> None:
    """A table on standard output."""
    print(f"\n{title}")
    for line in table_lines(rows):
        print(f"  {line}")


def network_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of finished networks."""
    return [
        {
            "network": record["name"],
            "widths": _widths(record["widths"]),
            "parameters": record["parameters"],
            "MACs": record["macs"],
            "train loss": record["train_loss"],
            "val loss": record["val_loss"],
            "test loss": record["test_loss"],
            "test accuracy": percent(record["test_accuracy"]),
        }
        for record in records
    ]


def round_rows(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of rounds."""
    return [
        {
            "round": row["round"],
            "grown": row["grown"] or "(initial)",
            "widths": _widths(row["widths"]),
            "parameters": row["parameters"],
            "train loss": row["train_loss"],
            "val loss": row["val_loss"],
            "val accuracy": percent(row["val_accuracy"]),
            "seconds": f"{row['round_seconds']:.1f}",
        }
        for row in rounds
    ]


def width_hint(records: list[dict[str, Any]]) -> str | None:
    """What to know of the widths that planted networks ended with: those from 32 on that are no multiple of 4, by which
    convolutions are slower (``findings/onnxruntime_widths.sh``)."""
    odd = [
        f"{layer} of {record['name']} ({width}; {width // 4 * 4} or {-(-width // 4) * 4})"
        for record in records
        if record["role"] == "planted"
        for layer, width in record["widths"].items()
        if width >= 32 and width % 4
    ]
    if not odd:
        return None
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return (
        f"Widths that are no multiple of 4 leave the fast layouts of many runtimes: {', '.join(odd[:3])}{more}. "
        "plantops.pruning.latency_table measures it."
    )


def _widths(widths: dict[str, int]) -> str:
    """Of few layers each, of many the sum."""
    few = len(widths) <= 8
    return " ".join(map(str, widths.values())) if few else f"{sum(widths.values())} in {len(widths)} layers"


def percent(share: float | None) -> str:
    """``84.35 %``."""
    return "-" if share is None else f"{100 * share:.2f} %"


def _tensorboard(run: Run) -> Any:
    from plantops._cli.tensorboard import board

    return board(run.path / "tensorboard")
