"""Checkpoints that survive: a folder per step that appears whole or not at all, and is never unpickled unchecked.

A checkpoint ``000012/`` holds::

    weights.safetensors   every tensor of the network
    structure.json        how to build the network that they belong to
    state.pt              optimizer, counters, generators (torch.save; read back with weights_only=True)
    manifest.json         the format, the step, and the SHA-256 and size of each file above

It is written under a temporary name, each file and the folder are fsynced, and one rename puts it in place. A process
that is killed at any moment leaves at most a temporary folder, which the next save clears away.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.train.files import (
    RunError,
    atomic_write_bytes,
    atomic_write_text,
    explained,
    parse_json,
    read_regular,
    sync_folder,
    write_synced,
)

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore", "atomic_write_bytes", "atomic_write_text"]

FORMAT = "plantops-checkpoint"
VERSION = 1
KEEP = 2
WEIGHTS, STRUCTURE, STATE, MANIFEST = "weights.safetensors", "structure.json", "state.pt", "manifest.json"
_STEP = re.compile(r"[0-9]{6,}")
_TEMPORARY = re.compile(r"[0-9]{6,}\.tmp-.*")


class CheckpointError(RunError):
    """A checkpoint that is damaged or not ours. The message names the file and the reason."""


@dataclass
class Checkpoint:
    """What ``save`` was given, tensors on the CPU; ``warning`` says so when a newer one had to be passed over."""

    step: int
    tensors: dict[str, Tensor]
    structure: dict[str, Any]
    state: dict[str, Any]
    path: Path
    warning: str | None = None


class CheckpointStore:
    """The checkpoints of one run, in one folder. One process writes at a time (``Run`` holds the lock)."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        steps = self.steps()
        self._newest = steps[-1] if steps else -1

    def steps(self) -> list[int]:
        """The steps that have a folder, ascending; says nothing about their content."""
        with explained(self.folder):
            names = [entry.name for entry in os.scandir(self.folder)] if self.folder.is_dir() else []
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def save(
        self, step: int, tensors: Mapping[str, Tensor], structure: Mapping[str, Any], state: Mapping[str, Any]
    ) -> Path:
        """Write checkpoint ``step`` and remove all but the last two.

        Args:
            step: larger than every step before it (after ``latest``: than the one that was loaded; anything newer was
                damaged and is removed).
            tensors: the network's parameters and buffers, from any device.
            structure: JSON values only.
            state: nested dicts (keys str or int), lists and tuples of tensors, numbers, strings, bytes and None.

        Returns:
            The checkpoint's folder.

        Raises:
            ValueError, TypeError: a step that does not grow; something in ``state`` that could not be read back.
            RunError: disk full or no permission; the earlier checkpoints are untouched.
        """
        if step <= self._newest:
            raise ArgumentError(f"step must be larger than the newest checkpoint's {self._newest}, got {step}")
        check_plain(state, "state")
        files = {
            WEIGHTS: _weights_bytes(tensors),
            STRUCTURE: _json_bytes(structure),
            STATE: _state_bytes(state),
        }
        entries = {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in files.items()}
        files[MANIFEST] = _json_bytes({"format": FORMAT, "version": VERSION, "step": step, "files": entries})
        final = self.folder / f"{step:06d}"
        with explained(final):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            _write_folder(final, files)
            self._newest = step
            self._prune()
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None when there is none at all.

        Raises:
            CheckpointError: there are checkpoints, but each one is damaged or foreign.
        """
        reasons: list[str] = []
        for step in reversed(self.steps()):
            try:
                checkpoint = load_checkpoint(self.folder / f"{step:06d}")
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            self._newest = step
            if reasons:
                checkpoint.warning = f"{' '.join(reasons)} Going on from the checkpoint before it, {checkpoint.path}."
            return checkpoint
        if reasons:
            raise CheckpointError(f"{' '.join(reasons)} No checkpoint is left to go on from: start a new run.")
        return None

    def _clear_leftovers(self) -> None:
        """Temporary folders of a killed process, and checkpoints that ``latest`` had to pass over."""
        for entry in list(os.scandir(self.folder)):
            damaged = _STEP.fullmatch(entry.name) and int(entry.name) > self._newest
            if damaged or _TEMPORARY.fullmatch(entry.name):
                shutil.rmtree(entry.path)

    def _prune(self) -> None:
        for step in self.steps()[:-KEEP]:
            shutil.rmtree(self.folder / f"{step:06d}")


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint folder. Nothing is parsed before its SHA-256 matched, and no pickle can run code.

    Raises:
        CheckpointError: damaged or foreign; names the file and the reason.
    """
    path = Path(path)
    manifest = _read_manifest(path / MANIFEST)
    data = {name: _read_checked(path / name, manifest["files"][name]) for name in (WEIGHTS, STRUCTURE, STATE)}
    try:
        tensors = safetensors.torch.load(data[WEIGHTS])
        state = torch.load(io.BytesIO(data[STATE]), map_location="cpu", weights_only=True)
    except Exception as error:  # of other libraries, which have many for content that they do not know
        raise CheckpointError(f"{path}: not a checkpoint of this program ({_words(error)}).") from error
    structure = _parsed(data[STRUCTURE], path / STRUCTURE)
    for name, value in ((STRUCTURE, structure), (STATE, state)):
        if not isinstance(value, dict):
            raise CheckpointError(f"{path / name}: must hold names and values, got {type(value).__name__}.")
    return Checkpoint(manifest["step"], tensors, structure, state, path)


def _words(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]


def _parsed(text: bytes, path: Path) -> Any:
    try:
        return parse_json(text, path)
    except RunError as error:
        raise CheckpointError(str(error)) from error


def check_plain(value: Any, where: str) -> None:
    """Everything in ``value`` can be read back by ``torch.load(weights_only=True)``.

    Raises:
        TypeError: names the place and the type.
    """
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, (str, int)):
                raise ArgumentTypeError(f"{where}: keys must be str or int, got {type(key).__name__}: {key!r}")
            check_plain(entry, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for place, entry in enumerate(value):
            check_plain(entry, f"{where}[{place}]")
    elif not (value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor)):
        raise ArgumentTypeError(
            f"{where} must be tensors, numbers, strings or nestings of them, got {type(value).__name__}"
        )


def _plain(value: Any) -> Any:
    """The same nesting in plain dicts and lists, each tensor on the CPU and alone in its storage."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [_plain(entry) for entry in value]
        return tuple(entries) if isinstance(value, tuple) else entries
    return value


def _weights_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def _state_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(_plain(state), buffer)
    return buffer.getvalue()


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("utf-8")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_folder(final: Path, files: Mapping[str, bytes]) -> None:
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_synced(temporary / name, data)
        sync_folder(temporary)
        os.rename(temporary, final)
        sync_folder(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read_manifest(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: missing, so this is not a checkpoint.")
    manifest = _parsed(_read(path), path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not written by plantops (its format is not {FORMAT!r}).")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {manifest.get('version')}, this plantops reads {VERSION}. "
            "Go on with the version of plantops that wrote it."
        )
    files = manifest.get("files")
    if type(manifest.get("step")) is not int or not isinstance(files, dict):
        raise CheckpointError(f"{path}: damaged, the step or the files are missing.")
    for name in (WEIGHTS, STRUCTURE, STATE):
        if not isinstance(files.get(name), dict):
            raise CheckpointError(f"{path}: damaged, it has no entry for {name}.")
    if path.parent.name != f"{manifest['step']:06d}":
        raise CheckpointError(f"{path}: it is of step {manifest['step']}, the folder is named {path.parent.name}.")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except RunError as error:
        raise CheckpointError(str(error)) from error


def _read_checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    data = _read(path)
    if len(data) != entry.get("bytes"):
        raise CheckpointError(f"{path}: damaged, {len(data)} bytes instead of {entry.get('bytes')}.")
    if _sha256(data) != entry.get("sha256"):
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the manifest's.")
    return data
