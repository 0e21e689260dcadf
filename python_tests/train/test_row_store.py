"""Rows in a file: each written once, whoever writes; what is damaged, missing or half written is not there."""

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plantops.train import RunError, row_store
from plantops.train.row_store import HEADER, RowStore

DTYPES = [torch.float16, torch.float32, torch.float64]


def store(path: Path | None, dtype: torch.dtype = torch.float16, **changes: Any) -> RowStore:
    return RowStore(**{"rows": 50, "columns": 3, "dtype": dtype, "path": path, "identity": "a", **changes})


def values(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_row_is_what_was_written_first(tmp_path: Path, dtype: torch.dtype, in_file: bool) -> None:
    rows = store(tmp_path / "rows" / "a.bin" if in_file else None, dtype)
    some, others = torch.tensor([4, 49, 0]), torch.tensor([49, 7, 4])
    assert rows.missing(torch.arange(50)).all()
    rows.put(some, values(3))
    assert torch.equal(rows.get(some), values(3).to(dtype))
    rows.put(others, values(3, seed=1))
    assert torch.equal(rows.get(some), values(3).to(dtype))
    assert torch.equal(rows.get(others[1:2]), values(3, seed=1)[1:2].to(dtype))
    assert (~rows.missing(torch.arange(50))).nonzero().flatten().tolist() == [0, 4, 7, 49]
    rows.flush()
    if in_file:
        again = store(tmp_path / "rows" / "a.bin", torch.float16)
        assert again.taken_up
        assert again.dtype == dtype  # the file's
        assert torch.equal(again.get(some), values(3).to(dtype))
        assert again.missing(torch.arange(50)).sum() == 46


def test_values_that_half_precision_has_not(tmp_path: Path) -> None:
    rows = store(None)
    rows.put(torch.tensor([0]), torch.tensor([[7e4, -7e4, float("nan")]]))
    assert rows.get(torch.tensor([0]))[0, :2].tolist() == [65504, -65504]
    assert rows.get(torch.tensor([0]))[0, 2].isnan()
    assert not rows.missing(torch.tensor([0]))


@pytest.mark.parametrize("place", range(10))
def test_every_byte_is_sealed(tmp_path: Path, place: int) -> None:
    """A row of three halves is ten bytes with its seal; whichever bit of it changes, the row is missing."""
    path = tmp_path / "a.bin"
    rows = store(path)
    rows.put(torch.arange(50), values(50))
    sound = path.read_bytes()
    for bit in range(8):
        damaged = bytearray(sound)
        damaged[HEADER + 10 * 17 + place] ^= 1 << bit
        path.write_bytes(damaged)
        assert store(path).missing(torch.arange(50)).nonzero().flatten().tolist() == [17]
    # Rows that have changed places, or hold nothing.
    swapped = bytearray(sound)
    swapped[HEADER : HEADER + 10], swapped[HEADER + 10 : HEADER + 20] = (
        sound[HEADER + 10 : HEADER + 20],
        sound[HEADER : HEADER + 10],
    )
    swapped[HEADER + 20 : HEADER + 30] = bytes(10)
    path.write_bytes(swapped)
    assert store(path).missing(torch.arange(50)).nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data + b"0", lambda data: b"", lambda data: b"\0" + data[1:],
     lambda data: b"[1]".ljust(HEADER) + data[HEADER:], lambda data: data[:40] + b"\xff" + data[41:]],
    ids=["shorter", "longer", "empty", "no header", "another header", "no text"],
)  # fmt: skip
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a.bin"
    store(path).put(torch.arange(50), values(50))
    path.write_bytes(damage(path.read_bytes()))
    rows = store(path)
    assert not rows.taken_up
    assert rows.missing(torch.arange(50)).all()
    rows.put(torch.arange(2), values(2))
    assert store(path).taken_up
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.bin", "a.lock"]


@pytest.mark.parametrize("other", [{"identity": "b"}, {"rows": 51}, {"columns": 4}, {"anew": True}])
def test_other_rows_are_not_taken_for_these(tmp_path: Path, other: dict[str, Any]) -> None:
    path = tmp_path / "a.bin"
    store(path).put(torch.arange(50), values(50))
    assert store(path, **other).missing(torch.arange(50)).all()


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = shutil.disk_usage(tmp_path)._replace(free=4595)
    monkeypatch.setattr(row_store.shutil, "disk_usage", lambda path: room)
    with pytest.raises(RunError, match=r"rows: 4,596 bytes are needed for the teacher's views, 4,595 are free\. Free"):
        store(tmp_path / "rows" / "a.bin")
    assert [entry.name for entry in (tmp_path / "rows").iterdir()] == ["a.lock"]


def test_a_disk_that_fills_up_while_the_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(row_store.os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"a\.bin: No space left on device\. The disk is full"):
        store(tmp_path / "a.bin")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.lock"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows lie in memory; those of a file that is there are read, and what is added stays here."""
    (tmp_path / "file").write_text("")
    rows = store(tmp_path / "file" / "a.bin")
    rows.put(torch.arange(2), values(2))
    assert rows.path is None
    assert torch.equal(rows.get(torch.arange(2)), values(2).half())

    path = tmp_path / "a.bin"
    store(path).put(torch.arange(2), values(2))
    real = os.open

    def forbidden(*args: Any, **more: Any) -> int:
        if args[1] & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(*args, **more)

    monkeypatch.setattr(row_store.os, "open", forbidden)
    before, rows = path.read_bytes(), store(path)
    assert rows.missing(torch.arange(4)).tolist() == [False, False, True, True]
    rows.put(torch.arange(4), values(4, seed=1))
    assert torch.equal(rows.get(torch.arange(4)), torch.cat([values(2), values(4, seed=1)[2:]]).half())
    assert path.read_bytes() == before


def _fill(path: Path, seed: int, ready: Any, go: Any) -> None:
    """Write all rows a few at a time, in an order of its own."""
    rows = store(path, rows=2000)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(seed))
    mine = values(2000, seed)
    ready.release()
    go.wait()
    for part in order.split(7):
        rows.put(part, mine[part])
    os.kill(os.getpid(), signal.SIGKILL)  # nothing is tidied up


def test_two_processes_fill_one_file(tmp_path: Path) -> None:
    """Every row is that of one of them, whole, and stays; both die at the end."""
    path = tmp_path / "a.bin"
    spawn = multiprocessing.get_context("fork")
    ready, go = spawn.Semaphore(0), spawn.Event()
    writers = [spawn.Process(target=_fill, args=(path, seed, ready, go)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for _ in writers:
        ready.acquire()
    go.set()
    for writer in writers:
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    rows = store(path, rows=2000)
    everyone = torch.arange(2000)
    assert not rows.missing(everyone).any()
    found = rows.get(everyone)
    whose = torch.stack([(found == values(2000, seed).half()).all(1) for seed in (1, 2)])
    assert whose.any(0).all()
    rows.put(everyone, values(2000, 3))
    assert torch.equal(rows.get(everyone), found)
