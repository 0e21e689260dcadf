"""What every data source hands up: plain tensors, before any split or normalisation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from plantops.errors import PlantopsError


class DataError(PlantopsError, ValueError):
    """A data set that is missing, damaged or not what was asked for. The message says what to do."""


@dataclass
class RawPart:
    """Images ``[N, C, H, W]`` (uint8) and labels ``[N]`` (int64) of one part."""

    images: Tensor
    labels: Tensor


@dataclass
class RawData:
    """A data set as its source publishes it. A part that the source does not set apart is None."""

    train: RawPart
    val: RawPart | None
    test: RawPart | None
    class_names: tuple[str, ...]


def find_folder(name: str, root: str | os.PathLike[str] | None, marker: str) -> Path | None:
    """The folder ``name`` that holds the file ``marker``: under ``root``, or ``root`` itself.

    Without ``root``: the environment variable PLANTOPS_DATA, then ``data/`` here, then ``~/.cache/plantops``.
    """
    for place in search_places(root):
        for folder in (place / name, place):
            if (folder / marker).is_file():
                return folder
    return None


def search_places(root: str | os.PathLike[str] | None) -> list[Path]:
    """The folders that are looked through, in order."""
    if root is not None:
        return [Path(root).expanduser()]
    environment = os.environ.get("PLANTOPS_DATA")
    places = [Path(environment).expanduser()] if environment else []
    return [*places, Path("data"), Path.home() / ".cache" / "plantops"]


def missing(title: str, folder: str, url: str, archive: str, root: str | os.PathLike[str] | None) -> DataError:
    """The error for a data set that is nowhere to be found, with the steps that put it there."""
    looked = ", ".join(str(place / folder) for place in search_places(root))
    where = Path(root).expanduser() if root is not None else Path("data")
    return DataError(
        f"{title} was not found (looked in {looked}). Download {url} and unpack it: "
        f"mkdir -p {where} && tar -xzf {archive} -C {where}, then pass --data-root {where}; "
        "or pass --download to let torchvision fetch it (pip install 'plantops[vision]')."
    )


def read_verified(path: Path, md5: str, redo: str) -> bytes:
    """The bytes of ``path``, only if their MD5 is the published one. Read once: what is checked is what is used."""
    data = read_bytes(path)
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path}: MD5 {found} differs from the published {md5}, so the file is not read. {redo}")
    return data


def read_bytes(path: Path) -> bytes:
    """The bytes of ``path``; a file that cannot be read is a DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def require(module: str, extra: str, use: str) -> DataError:
    """The error for an optional package that is not installed."""
    return DataError(f"{use} needs {module}, which is not installed: pip install 'plantops[{extra}]'.")


def check_labels(labels: Iterable[int], classes: int, where: str) -> None:
    """Every label lies in 0 .. classes - 1."""
    for label in set(labels):
        if not 0 <= label < classes:
            raise DataError(f"{where}: label {label} is outside 0 to {classes - 1}.")
