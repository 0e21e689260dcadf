"""What a session's checkpoint must look like before anything of it is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from plantops.train.checkpoint import Checkpoint, CheckpointError
from plantops.train.files import RunError
from plantops.train.run import Run

FORMAT = "plantops-session"
UNDER_WAY = ("keys", "epoch", "records", "seconds")
"""What a checkpoint says of the training that it caught in the middle."""


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a run's configuration, whatever the order of its names."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


class Stored(dict[str, Any]):
    """A result from a checkpoint; ``where``: for the message when a name is missing that the program asks for."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._where = where

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"{self._where} has no {name!r}: it was not written by this version of plantops.")


def checkpoint_of(run: Run) -> Checkpoint | None:
    """The newest checkpoint of a run, if it is one of a run with this configuration; None where there is none yet.

    Raises:
        RunError: another program's, damaged, or made with other options than the run's ``config.json`` has now.
    """
    checkpoint = run.checkpoints.latest()
    if checkpoint is None:
        return None
    structure, path = checkpoint.structure, checkpoint.path
    if structure.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of a run (its format is not {FORMAT!r}).")
    wrong = _wrong(structure)
    if wrong is not None:
        raise CheckpointError(f"{path}: damaged, {wrong}.")
    made_with, now = structure.get("config_sha256"), config_hash(run.config)
    if made_with not in (None, now):  # versions before this one did not store it
        raise RunError(
            f"{run.path}: the configuration in config.json (SHA-256 {now[:16]}) is not the one that made the "
            f"checkpoint {path.name} ({str(made_with)[:16]}). Restore config.json, or start a new run with --config."
        )
    return checkpoint


def _wrong(structure: Mapping[str, Any]) -> str | None:
    """What is not as ``Session`` writes it, in words."""
    for name in ("records", "metrics_bytes"):
        if not _whole(structure.get(name)):
            return f"{name} must be a number of at least 0, got {structure.get(name)!r}"
    finished, under_way = structure.get("finished"), structure.get("under_way")
    if not isinstance(finished, dict):
        return f"finished must hold names and values, got {type(finished).__name__}"
    for key, entry in finished.items():
        counts = isinstance(entry, dict) and all(_whole(entry.get(name)) for name in ("records", "epochs"))
        if not counts or not isinstance(entry.get("result"), dict) or not isinstance(entry.get("tensors", []), list):
            return f"the finished work {key!r} must have a result, records and epochs"
        for name, value in entry["result"].items():
            pair = isinstance(value, list) and "steps" in entry["result"]  # of a pruning: before and after
            values = value if pair else [value]
            if name.endswith(("loss", "accuracy", "seconds")) and not all(map(_number, values)):
                return f"the finished work {key!r} must have numbers as {name}, got {value!r}"
    if under_way is None:
        return None
    if not isinstance(under_way, dict) or any(name not in under_way for name in UNDER_WAY):
        return f"the work under way must have {', '.join(UNDER_WAY)}"
    keys, seconds = under_way["keys"], under_way["seconds"]
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        return "the keys of the work under way must be names"
    if not isinstance(seconds, list) or len(seconds) != len(keys) or not all(map(_number, seconds)):
        return f"the seconds of the work under way must be {len(keys)} numbers"
    if not all(_whole(under_way[name]) for name in ("epoch", "records")):
        return "epoch and records of the work under way must be numbers of at least 0"
    return None


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and -1e300 < value < 1e300)
