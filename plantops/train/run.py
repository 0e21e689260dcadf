"""A run is one folder: what was asked for, on which machine, and everything that was measured.

- ``config.json``: the resolved configuration and the environment
- ``metrics.jsonl``: one JSON object a line, in the order things happened
- ``checkpoints/``: see ``train.checkpoint``
- ``report.html``: see ``train.report``
- ``.lock``: held while a process writes the run
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plantops.train.checkpoint import CheckpointStore
from plantops.train.environment import describe_environment, differences
from plantops.train.files import TEMPORARY, RunError, atomic_write_text, explained, parse_json, read_regular

__all__ = ["Run", "RunError", "RunRecord", "read_run"]

FORMAT = "plantops-run"
VERSION = 1
CONFIG, METRICS, LOCK, CHECKPOINTS = "config.json", "metrics.jsonl", ".lock", "checkpoints"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""What a run writes in place is a file of its own: a link would have another file cut short."""


@dataclass
class RunRecord:
    """What a run's files say. Reading takes no lock: a run can be looked at while it goes on."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self._whole("seed", 0)

    @property
    def split_seed(self) -> int:
        """The seed of the held-out split."""
        return self._whole("split_seed", self.seed)

    def _whole(self, name: str, default: int) -> int:
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise RunError(f"{self.path / CONFIG}: {name} must be a whole number of at least 0, got {value!r}.")
        return value

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind, in order."""
        return [record for record in self.metrics if record.get("kind") == kind]


class Run:
    """The writing side of a run folder: one process at a time. Use as a context manager, or call ``close``."""

    def __init__(self, path: Path, config: dict[str, Any], environment: dict[str, Any], lock: int) -> None:
        """Use ``Run.create`` or ``Run.open``."""
        self.path = path
        self.config = config
        self.environment = environment
        self.checkpoints = CheckpointStore(path / CHECKPOINTS)
        self._lock = lock
        with explained(path / METRICS):
            self._metrics = os.open(path / METRICS, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK, 0o666)

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any]) -> Run:
        """Start a run in a folder that does not exist yet or is empty; writes ``config.json`` with the environment.

        What a process leaves that was killed before ``config.json`` was whole (a lock, a temporary file) is cleared.

        Raises:
            RunError: the folder holds something already, is in use, or cannot be written.
        """
        path = Path(path).expanduser()
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
            with _released_on_error(lock):
                _clear_unbegun(path)
                held = sorted(entry.name for entry in os.scandir(path) if entry.name != LOCK)
                if CONFIG in held:
                    raise RunError(
                        f"{path} holds a run already. Go on with --resume {path}, or choose another folder with --out."
                    )
                if held:
                    raise RunError(
                        f"{path} is not empty (it holds {held[0]}). Choose a new or empty folder with --out."
                    )
                environment = describe_environment()
                document = {
                    "format": FORMAT,
                    "version": VERSION,
                    "config": dict(config),
                    "environment": environment,
                }
                atomic_write_text(path / CONFIG, json.dumps(document, indent=2) + "\n")
                # What a resumed run reads is what this one works with: tuples are lists for both.
                plain = json.loads(json.dumps(document))
                return cls(path, plain["config"], plain["environment"], lock)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Go on with a run.

        Raises:
            RunError: no run there, in use by another process, damaged or written by another program.
        """
        path = Path(path).expanduser()
        config, environment = _read_config(path)
        with explained(path):
            lock = _take_lock(path)
            with _released_on_error(lock):
                _clear_temporaries(path)
                return cls(path, config, environment, lock)

    def log(self, kind: str, **fields: Any) -> None:
        """Append one record to ``metrics.jsonl``.

        One ``write`` of one whole line to the operating system: it survives the death of this process at once. It is
        not forced to the disk record by record, which would cost milliseconds each and buys nothing: after a power cut
        a run goes on from a checkpoint, and ``metrics_length``, which every checkpoint stores, does force it. Numbers
        are written so that they read back exactly; NaN and infinities, which JSON has not, become null.

        Raises:
            RunError: disk full and the like; the file is left as it was before the call.
        """
        line = (json.dumps({"kind": kind, **_jsonable(fields)}, allow_nan=False) + "\n").encode("utf-8")
        with explained(self.path / METRICS):
            before = os.fstat(self._metrics).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._metrics, line[written:])
            except OSError:
                os.ftruncate(self._metrics, before)
                raise

    def metrics_length(self) -> int:
        """The length of ``metrics.jsonl`` in bytes, all of it on the disk when this returns. A checkpoint stores it."""
        with explained(self.path / METRICS):
            os.fsync(self._metrics)
            return os.fstat(self._metrics).st_size

    def cut_metrics(self, length: int) -> None:
        """Drop everything after the first ``length`` bytes: what was measured after the checkpoint is measured again.

        Raises:
            RunError: the file is shorter than that, or ``length`` is not the end of a record.
        """
        with explained(self.path / METRICS):
            size = os.fstat(self._metrics).st_size
            if length < 0 or size < length:
                raise RunError(
                    f"{self.path / METRICS}: damaged, {size} bytes where the checkpoint was written at {length}. "
                    "Restore the file or start a new run."
                )
            if length and os.pread(self._metrics, 1, length - 1) != b"\n":
                raise RunError(
                    f"{self.path / METRICS}: damaged, byte {length} is not the end of a record. "
                    "Restore the file or start a new run."
                )
            os.ftruncate(self._metrics, length)
            os.fsync(self._metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """All records so far."""
        return _read_metrics(self.path / METRICS)

    def environment_differences(self) -> list[str]:
        """What has changed between the machine that started the run and this one, in words; empty when nothing has.

        Any difference can change the last bits of what follows.
        """
        return differences(self.environment, describe_environment())

    def close(self) -> None:
        """Force the metrics to the disk and give the folder free. May be called twice."""
        if self._lock < 0:
            return
        try:
            with explained(self.path / METRICS):
                os.fsync(self._metrics)
        finally:
            os.close(self._metrics)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_run(path: str | os.PathLike[str]) -> RunRecord:
    """Read a run's configuration and metrics.

    Raises:
        RunError: no run there, damaged or written by another program.
    """
    path = Path(path).expanduser()
    config, environment = _read_config(path)
    return RunRecord(path, config, environment, _read_metrics(path / METRICS))


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    file = path / CONFIG
    if not os.path.lexists(file):
        if unbegun(path):
            raise RunError(f"{path} was stopped before its run began: start it again, with --out {path}.")
        raise RunError(f"{path} is not a run: there is no {CONFIG} in it. Give the folder that --out named.")
    document = parse_json(read_regular(file), file)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RunError(f"{file}: not written by plantops (its format is not {FORMAT!r}).")
    if document.get("version") != VERSION:
        raise RunError(f"{file}: run version {document.get('version')}, this plantops reads {VERSION}.")
    if not isinstance(document.get("config"), dict) or not isinstance(document.get("environment"), dict):
        raise RunError(f"{file}: damaged, the configuration or the environment is missing.")
    return document["config"], document["environment"]


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """A last line without its end (a power cut) is left out; anything else that is not a record is an error."""
    if not os.path.lexists(path):
        return []
    lines = read_regular(path).split(b"\n")[:-1]
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        record = parse_json(line, f"{path}, line {number}")
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            raise RunError(f"{path}, line {number}: not a record of plantops, it has no kind.")
        records.append(record)
    return records


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if hasattr(value, "item"):  # a number inside a tensor or a numpy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _take_lock(path: Path) -> int:
    """A lock that the operating system gives back when the process ends, however it ends."""
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
    try:
        import fcntl
    except ImportError:  # not a POSIX system: two processes in one folder are not noticed there
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise RunError(
            f"{path} is in use by another process{f' (number {holder})' if holder else ''}. "
            "Wait for it to end or stop it, or choose another folder with --out."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def holds_run(path: str | os.PathLike[str]) -> bool:
    """Whether a run began in the folder ``path``; one that was killed before its configuration was whole did not."""
    return os.path.lexists(Path(path).expanduser() / CONFIG)


def unbegun(path: str | os.PathLike[str]) -> bool:
    """Whether the folder ``path`` holds only what a process leaves that was killed before its run began."""
    path = Path(path).expanduser()
    with explained(path):
        left = list(os.scandir(path)) if path.is_dir() else []
    return bool(left) and all(entry.name == LOCK or _is_first_write(entry) for entry in left)


def _is_first_write(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(f".{CONFIG}{TEMPORARY}") and entry.is_file(follow_symlinks=False)


def _clear_unbegun(path: Path) -> None:
    """The half-written configuration of a killed process; none is in use, for the lock is ours."""
    for entry in list(os.scandir(path)):
        if _is_first_write(entry):
            os.unlink(entry.path)


def _clear_temporaries(path: Path) -> None:
    """Files that a killed process was writing; none is in use, for the lock is ours."""
    for leftover in path.rglob(f".*{TEMPORARY}*"):
        leftover.unlink()


@contextmanager
def _released_on_error(lock: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(lock)
        raise
