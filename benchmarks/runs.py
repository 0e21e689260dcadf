"""Runs of the command line as pieces of a table: begun, stopped, taken up, some at a time, and read as rows."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from plantops._cli.mistakes import INTERRUPTED
from plantops._cli.options import PlantOptions, TeacherRunOptions, TrainOptions
from plantops._cli.parse import flag_name, resolve, stored_options
from plantops.bench.record import commit
from plantops.cli import main as plantops
from plantops.train.run import Run, RunError, RunRecord, read_run
from plantops.train.session import Session


@dataclass(frozen=True)
class Job:
    """One run: its folder's name, the row it is in the table, and how plantops is called for it.

    ``after``: the name of the job that has to end before (a teacher).
    """

    name: str
    row: str
    seed: int
    arguments: tuple[str, ...]
    role: str
    after: str | None = None


def ended(folder: Path) -> bool:
    """Whether the run in ``folder`` is there and complete."""
    if not folder.exists():
        return False
    with Run.open(folder) as run:
        return Session.ended(run)


OPTIONS = {"plant": PlantOptions, "teacher": TeacherRunOptions, "train": TrainOptions}
ELSEWHERE = ("data_root", "teacher", "device", "out")
"""Options that may have another value when a run is taken up: paths, and where it runs."""


def check_made_for(job: Job, folder: Path) -> None:
    """Raises RunError where the run in ``folder`` was begun with other options than the job has now."""
    kind, config = OPTIONS[job.arguments[0]], stored_options(read_run(folder).config)
    asked = dataclasses.asdict(resolve(kind, job.arguments[0], job.arguments[1:]))
    flags = [flag_name(word) or "" for word in job.arguments]
    for name in {flag if flag in asked else flag.removeprefix("no_") for flag in flags} & asked.keys():
        if name not in ELSEWHERE and name in config and config[name] != asked[name]:
            raise RunError(
                f"{folder} was begun with {name}={config[name]}, and {name}={asked[name]} is asked for: give another "
                "folder to --resume, or take this run away."
            )


def command(job: Job, folder: Path) -> list[str]:
    """What begins the run, or goes on with it."""
    if folder.exists():
        return [job.arguments[0], "--resume", str(folder)]
    return [*job.arguments, "--out", str(folder)]


def finish(todo: Sequence[Job], folder: Path, minutes: float | None, side_by_side: int = 1) -> int:
    """Begin or go on with everything that has not ended; 0, or the exit status of what stopped.

    ``side_by_side``: so many runs at the same time, each a process with a log beside its folder.
    """
    for job in todo:
        if (folder / job.name).exists():
            check_made_for(job, folder / job.name)
    left = [job for job in todo if not ended(folder / job.name)]
    if side_by_side > 1:
        return _finish_side_by_side(left, folder, minutes, side_by_side)
    with stopped_after(minutes) as over:
        for job in left:
            place = f"{todo.index(job) + 1}/{len(todo)}"
            print(f"\n{place}: {job.name}", flush=True)
            status = plantops(command(job, folder / job.name)) or (INTERRUPTED if over() else 0)
            if status:
                print(f"\nStopped at {place}, {job.name}. Call again to go on.")
                return status
    return 0


@contextlib.contextmanager
def stopped_after(minutes: float | None) -> Iterator[Callable[[], bool]]:
    """Ctrl-C to this process when the time is over: plantops then stops behind a checkpoint. Yields what tells whether
    it is over: a run that was just ending ends as if nothing had been."""
    over: list[bool] = []
    if minutes is None:
        yield lambda: False
        return

    def stop(*_: object) -> None:
        over.append(True)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield lambda: bool(over)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _finish_side_by_side(left: Sequence[Job], folder: Path, minutes: float | None, most: int) -> int:
    end = None if minutes is None else time.monotonic() + 60 * minutes
    waiting, names = list(left), {job.name for job in left}
    running: dict[str, subprocess.Popen[bytes]] = {}
    status, interrupted = 0, False
    try:
        while (waiting and not status) or running:
            ready = [job for job in waiting if job.after not in names]
            while ready and len(running) < most and not status:
                job = ready.pop(0)
                waiting.remove(job)
                print(f"{len(left) - len(waiting)}/{len(left)}: {job.name}", flush=True)
                running[job.name] = _start(job, folder)
            time.sleep(0.2)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    if not process.returncode:
                        names.discard(name)
                    elif not interrupted:
                        print(f"{name} stopped with status {process.returncode}: see {folder / name}.log", flush=True)
                        status = status or process.returncode
            if end is not None and time.monotonic() > end and not interrupted:
                status, interrupted = status or INTERRUPTED, True
                _interrupt(running)
    except KeyboardInterrupt:
        status = INTERRUPTED
        _interrupt(running)
    for name, process in running.items():
        if process.wait() == 0:
            names.discard(name)
    if status:
        print(f"\nStopped with {len(names)} of {len(left)} runs left. Call again to go on.")
    return status


def _start(job: Job, folder: Path) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches it through this process alone, once.
    call = [sys.executable, "-m", "plantops.cli", *command(job, folder / job.name)]
    with (folder / f"{job.name}.log").open("ab") as log:
        return subprocess.Popen(call, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def _interrupt(running: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        process.send_signal(signal.SIGINT)


def row_of(job: Job, folder: Path, reduced: bool) -> dict[str, Any]:
    """The CSV row of a run that has ended."""
    run = read_run(folder)
    networks = [record for record in run.of("network") if record["role"] in (job.role, "finetuned", "retrained")]
    return network_row(run, networks[-1], job, folder, reduced)


def network_row(run: RunRecord, network: dict[str, Any], job: Job, folder: Path, reduced: bool) -> dict[str, Any]:
    """The CSV row of one network of a run that has ended."""
    machine = run.environment
    return {
        "dataset": run.config["data"], "train_fraction": run.config.get("train_fraction", 1.0), "row": job.row,
        "seed": job.seed, "reduced": reduced,
        "parameters": network["parameters"], "macs": network["macs"],
        **{name: network[name] for part in ("train", "val", "test") for name in (f"{part}_loss", f"{part}_accuracy")},
        "widths": "-".join(map(str, network["widths"].values())), "epochs": network["epochs"],
        "seconds": round(network["train_seconds"], 1), "config": json.dumps(_portable(run.config), sort_keys=True),
        "hardware": (machine["gpus"] or [machine["cpu"]])[0], "cpu": machine["cpu"], "threads": machine["threads"],
        "torch": machine["torch"], "python": machine["python"], "plantops": machine["plantops"], "commit": commit(),
        "date": datetime.date.fromtimestamp((folder / "config.json").stat().st_mtime).isoformat(),
    }  # fmt: skip


def script(main: Callable[[], int], name: str) -> NoReturn:
    """Ends the process as ``main`` does; a mistake, and Ctrl-C, in one line."""
    try:
        raise SystemExit(main())
    except RunError as error:
        raise SystemExit(f"{name}: {error}") from None
    except KeyboardInterrupt:
        print("\nStopped. Call again to go on.")
        raise SystemExit(INTERRUPTED) from None


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the paths of one machine; a teacher keeps the name of its run."""
    kept = {name: value for name, value in config.items() if name not in ("data_root", "out")}
    if kept.get("teacher"):
        kept["teacher"] = Path(kept["teacher"]).name
    return kept
