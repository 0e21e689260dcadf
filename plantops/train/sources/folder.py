"""Pictures in folders: one sub-folder per class, optionally inside ``train/``, ``val/`` and ``test/``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plantops.train.files import RunError, open_regular
from plantops.train.sources.base import DataError, RawData, RawPart, require

MOST_PIXELS = 1 << 26
"""Of one picture, 8192 x 8192: a small file may claim a picture that no memory holds."""
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
GREY_MODES = {"1", "L", "LA"}


def read_folder(path: str | os.PathLike[str], image_size: int | None = None) -> RawData:
    """Every picture under ``path`` in memory, uint8 ``[N, C, H, W]``: one channel if all are grey, else RGB.

    ``path/train/<class>/*`` with optional ``path/val`` and ``path/test``, or ``path/<class>/*``. Class names are the
    training part's folder names in sorted order.

    Args:
        image_size: resize every picture to this square (bilinear, antialiased); without it all must have one size.

    Raises:
        DataError: no such folder, no classes, an empty class, a picture that cannot be read, sizes that differ; a
            picture of more than ``MOST_PIXELS``; something with a picture's name that is no file (a named pipe), or a
            symbolic link out of ``path``.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"folder:{path}: there is no folder {root}. Give folder:PATH with one sub-folder per class.")
    parted = (root / "train").is_dir()
    train_root = root / "train" if parted else root
    names = tuple(sorted(child.name for child in train_root.iterdir() if child.is_dir() and child.name[0] != "."))
    if len(names) < 2:
        raise DataError(f"{train_root}: found {len(names)} class folders, expected 2 or more, each full of pictures.")
    folders = {"train": train_root}
    if parted:
        folders.update({part: root / part for part in ("val", "test") if (root / part).is_dir()})
    files = {part: _list_files(folder, names) for part, folder in folders.items()}
    for listed in files.values():
        _check_inside(root, [file for file, _ in listed])
    everything = [entry for listed in files.values() for entry in listed]
    images = _read_pictures([file for file, _ in everything], image_size)
    labels = torch.tensor([label for _, label in everything], dtype=torch.int64)
    counts = [len(listed) for listed in files.values()]
    parts = {
        part: RawPart(*pair) for part, *pair in zip(files, images.split(counts), labels.split(counts), strict=True)
    }
    return RawData(parts["train"], parts.get("val"), parts.get("test"), names)


def _list_files(folder: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    unknown = sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name not in names)
    if unknown := [name for name in unknown if name[0] != "."]:
        raise DataError(f"{folder}: class folder {unknown[0]!r} has no training pictures.")
    listed: list[tuple[Path, int]] = []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue
        named = (file for file in (folder / name).rglob("*") if file.suffix.lower() in SUFFIXES)
        files = sorted(file for file in named if not file.is_dir())
        if not files:
            raise DataError(f"{folder / name}: no pictures ({', '.join(sorted(SUFFIXES))}).")
        listed += [(file, label) for file in files]
    if not listed:
        raise DataError(f"{folder}: no class folder with pictures.")
    return listed


def _check_inside(root: Path, files: list[Path]) -> None:
    """A folder of pictures from elsewhere names nothing outside itself."""
    inside = root.resolve()
    for file in files:
        place = Path(os.path.realpath(file))
        if not place.is_relative_to(inside):
            raise DataError(f"{file}: a symbolic link out of {root}, to {place}. Put the picture itself in its place.")


def _read_pictures(files: list[Path], image_size: int | None) -> Tensor:
    """uint8 ``[N, C, H, W]``."""
    grey = {_is_grey(file) for file in files} == {True}  # looks at every file: 16-bit ones are refused
    first = _read_picture(files[0], grey, image_size)
    try:
        images = torch.empty((len(files), *first.shape), dtype=torch.uint8)
    except RuntimeError as error:
        size = len(files) * first.size / 1e9
        raise DataError(
            f"{len(files):,} pictures of {first.shape[1]}x{first.shape[2]} pixels take {size:.1f} GB, more than there "
            "is: pass a smaller --image-size."
        ) from error
    for position, file in enumerate(files):
        pixels = _read_picture(file, grey, image_size)
        if pixels.shape != first.shape:
            raise DataError(
                f"{file} is {pixels.shape[1]}x{pixels.shape[2]} pixels (height x width), {files[0]} is "
                f"{first.shape[1]}x{first.shape[2]}. Pass --image-size to bring all pictures to one size."
            )
        images[position] = torch.from_numpy(pixels)
    return images


def _read_picture(file: Path, grey: bool, image_size: int | None) -> np.ndarray:
    """uint8 ``[C, H, W]``."""
    with _open(file) as opened:
        try:
            picture = opened.convert("L" if grey else "RGB")
        except Exception as error:  # decoders have many errors for content that they do not know
            raise DataError(f"{file}: damaged picture ({_words(error)}). Replace or remove it.") from error
        if image_size is not None and picture.size != (image_size, image_size):
            picture = picture.resize((image_size, image_size), _pillow().Resampling.BILINEAR)
        pixels = np.array(picture, dtype=np.uint8)
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_grey(file: Path) -> bool:
    with _open(file) as opened:
        if opened.mode[0] in "IF":
            raise DataError(f"{file}: {opened.mode} pixels (more than 8 bits). Convert it to an 8-bit picture.")
        return opened.mode in GREY_MODES


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """The picture as Pillow opens it: its size and mode are known, nothing is decoded yet."""
    pillow = _pillow()
    try:
        content = open_regular(file)
    except RunError as error:
        raise DataError(str(error)) from error
    with content:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # our own limit is below its
                opened = pillow.open(content)
        except pillow.DecompressionBombError as error:
            raise _too_large(file, "too many") from error
        except Exception as error:
            text = "of no known kind" if isinstance(error, pillow.UnidentifiedImageError) else _words(error)
            raise DataError(f"{file}: not a picture that Pillow can read ({text}). Replace or remove it.") from error
        if opened.width * opened.height > MOST_PIXELS:
            raise _too_large(file, f"{opened.height}x{opened.width}")
        with opened:
            yield opened


def _too_large(file: Path, size: str) -> DataError:
    return DataError(f"{file}: {size} pixels, more than the {MOST_PIXELS:,} that are read. Shrink or remove it.")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise require("Pillow (it comes with torchvision)", "vision", "folder:PATH") from error
    return Image
