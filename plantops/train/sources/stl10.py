"""STL-10 from its official binary files (A. Coates, H. Lee, A. Ng, "An Analysis of Single-Layer Networks in
Unsupervised Feature Learning", AISTATS 2011): the labelled parts, 5,000 training and 8,000 test images, 96x96.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from plantops.train.sources.base import (
    DataError,
    RawData,
    RawPart,
    check_labels,
    find_folder,
    missing,
    read_bytes,
    read_verified,
    require,
    search_places,
)

FOLDER = "stl10_binary"
ARCHIVE = "stl10_binary.tar.gz"
URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
CLASSES = 10
SIZE = 96
MD5 = {
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}


def read_stl10(root: str | os.PathLike[str] | None = None, download: bool = False) -> RawData:
    """The labelled train and test parts, uint8 ``[N, 3, 96, 96]``.

    Raises:
        DataError: the files are missing, incomplete or not the published ones.
    """
    folder = find_folder(FOLDER, root, "train_X.bin")
    if folder is None and download:
        folder = _download(root)
    if folder is None:
        raise missing("STL-10", FOLDER, URL, ARCHIVE, root)
    names = tuple(read_bytes(folder / "class_names.txt").decode("ascii", "replace").split())
    if len(names) != CLASSES:
        raise DataError(f"{folder / 'class_names.txt'}: {len(names)} names, expected {CLASSES}. {_redo()}")
    return RawData(_read_part(folder, "train"), None, _read_part(folder, "test"), names)


def _redo() -> str:
    return f"Unpack {ARCHIVE} from {URL} again."


def _read_part(folder: Path, part: str) -> RawPart:
    pixels = read_verified(folder / f"{part}_X.bin", MD5[f"{part}_X.bin"], _redo())
    labels = np.frombuffer(read_verified(folder / f"{part}_y.bin", MD5[f"{part}_y.bin"], _redo()), np.uint8)
    # Published column by column: the two image axes change places.
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, SIZE, SIZE).transpose(0, 1, 3, 2)
    zero_based = labels.astype(np.int64) - 1
    check_labels(zero_based.tolist(), CLASSES, str(folder / f"{part}_y.bin"))
    return RawPart(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(zero_based))


def _download(root: str | os.PathLike[str] | None) -> Path:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise require("torchvision", "vision", "--download") from error
    place = search_places(root)[0]
    try:
        datasets.STL10(str(place), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"torchvision could not download STL-10 to {place}: {error}. "
            f"Download {URL} yourself, unpack it there and pass --data-root {place}."
        ) from error
    return place / FOLDER
