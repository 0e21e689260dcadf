"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Protocol

from plantops.errors import ArgumentError
from plantops.train.files import MissingExtra
from plantops.train.pace import Pace, duration

Row = Mapping[str, Any]


class Progress(Protocol):
    """The unit of work is one epoch of one network.

    A run calls ``start`` once, then ``stage`` at the beginning of every part (teacher, initial network, each round),
    ``epoch`` after each epoch, ``round_done`` after each round and ``close`` at the end. ``batch`` and ``note`` may be
    called at any time. No call changes or slows a run measurably.
    """

    def start(self, total_units: int, done_units: int = 0) -> None:
        """``total_units`` epochs at most, of which a resumed run has done ``done_units`` before."""

    def stage(self, title: str, units: int, round: int | None = None, rounds: int | None = None) -> None:
        """A part of ``units`` epochs begins; ``round`` of at most ``rounds`` where it is one of the search's."""

    def batch(self, done: int, total: int) -> None:
        """``done`` of ``total`` batches of the current epoch."""

    def epoch(
        self,
        phase: str,
        name: str,
        round: int | None,
        epoch: int,
        epochs: int,
        train_loss: float,
        val_loss: float | None,
        lr: float,
        networks: int = 1,
    ) -> None:
        """Epoch ``epoch`` (from 1) of ``epochs`` is done; of ``networks`` that train together ``name`` leads."""

    def round_done(self, record: Row) -> None:
        """A round has ended, with this record of it (round 0: the initial network). It stays on the screen."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""

    def close(self) -> None:
        """Leave the terminal as it was. May be called twice."""


def make_progress(kind: str = "auto", stream: IO[str] | None = None) -> Progress:
    """``rich`` | ``plain`` | ``none`` | ``auto``: rich on a terminal where it is installed, else plain.

    Raises:
        ValueError: an unknown kind.
        MissingExtra: ``rich`` by name where it is not installed.
    """
    stream = sys.stdout if stream is None else stream
    if kind == "none":
        return NullProgress()
    if kind == "plain":
        return PlainProgress(stream)
    if kind == "rich":
        return RichProgress(stream)
    if kind != "auto":
        raise ArgumentError(f"progress must be auto, rich, plain or none, got {kind!r}")
    if stream.isatty():
        try:
            return RichProgress(stream)
        except ImportError:
            pass
    return PlainProgress(stream)


def cell(value: Any) -> str:
    """A table's entry as text: integers with thousands, floats with four decimals, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


class NullProgress:
    """Says nothing."""

    def start(self, total_units: int, done_units: int = 0) -> None: ...

    def stage(self, title: str, units: int, round: int | None = None, rounds: int | None = None) -> None: ...

    def batch(self, done: int, total: int) -> None: ...

    def epoch(
        self,
        phase: str,
        name: str,
        round: int | None,
        epoch: int,
        epochs: int,
        train_loss: float,
        val_loss: float | None,
        lr: float,
        networks: int = 1,
    ) -> None: ...

    def round_done(self, record: Row) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class PlainProgress:
    """A line per epoch, at most one every ``interval`` seconds; a network outside a sweep always shows its last."""

    def __init__(
        self,
        stream: IO[str] | None = None,
        interval: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._interval = interval
        self._clock = clock
        self._pace = Pace(clock)
        self._last_line = float("-inf")
        self._stage = ""
        self._rounds: int | None = None

    def start(self, total_units: int, done_units: int = 0) -> None:
        self._pace.start(total_units, done_units)

    def stage(self, title: str, units: int, round: int | None = None, rounds: int | None = None) -> None:
        self._pace.stage(units, round is not None)
        self._stage, self._rounds = title, rounds

    def batch(self, done: int, total: int) -> None: ...

    def epoch(
        self,
        phase: str,
        name: str,
        round: int | None,
        epoch: int,
        epochs: int,
        train_loss: float,
        val_loss: float | None,
        lr: float,
        networks: int = 1,
    ) -> None:
        self._pace.units(networks)
        ends = epoch == epochs and phase != "candidate"
        if not ends and self._clock() - self._last_line < self._interval:
            return
        self._last_line = self._clock()
        parts = [
            heading(phase, round, self._rounds),
            leading(name, networks) if name != phase else "",
            f"epoch {epoch}/{epochs}",
            f"loss {train_loss:.4f}",
            "" if val_loss is None else f"val {val_loss:.4f}",
            "" if ends else self._pace.text(),
        ]
        self._say("  ".join(part for part in parts if part))

    def round_done(self, record: Row) -> None:
        self._say(round_line(record))

    def note(self, text: str) -> None:
        self._say(text)

    def close(self) -> None:
        self._stream.flush()

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def leading(name: str, networks: int) -> str:
    """``conv2``, or ``conv2 leads 5`` where it is the best of several that train together."""
    return name if networks == 1 else f"{name} leads {networks}"


def heading(phase: str, round: int | None, rounds: int | None) -> str:
    """``round 3/10`` in a sweep, else the phase."""
    if phase != "candidate" or round is None:
        return phase
    return f"round {round}" if rounds is None else f"round {round}/{rounds}"


def round_line(record: Row) -> str:
    """``round 3: conv2 +4, 2,504 parameters, held-out loss 0.4321, accuracy 88.10 %, 0:12``."""
    begin = (
        "initial network"
        if not record["round"]
        else f"round {record['round']}: {record['grown']} +{record['channels']}"
    )
    accuracy = record.get("val_accuracy")
    parts = [
        begin,
        f"{cell(record['parameters'])} parameters",
        f"held-out loss {cell(record.get('val_loss'))}",
        "" if accuracy is None else f"accuracy {100 * accuracy:.2f} %",
        duration(record.get("round_seconds") or 0.0) if record["round"] else "",
    ]
    return ", ".join(part for part in parts if part)


def table_lines(rows: Sequence[Row]) -> list[str]:
    """An aligned table; text to the left, numbers to the right."""
    if not rows:
        return []
    names = list(rows[0])
    cells = [[cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[place]) for line in cells)) for place, name in enumerate(names)]
    numeric = [all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in names]

    def line(entries: Sequence[str]) -> str:
        padded = [
            entry.rjust(width) if right else entry.ljust(width)
            for entry, width, right in zip(entries, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return [line(names), line(["-" * width for width in widths]), *(line(entries) for entries in cells)]


class RichProgress:
    """Two bars (the stage, and the current network's epoch) with everything else printed above them."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises MissingExtra, an ImportError, with the pip command where rich is not installed."""
        try:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars
        except ImportError as error:
            raise MissingExtra("bars need rich, which is not installed: pip install 'plantops[cli]'") from error
        self._pace = Pace(clock)
        self._console = Console(file=sys.stdout if stream is None else stream)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        self._stage_task = self._bars.add_task("", total=None, visible=False, text="")
        self._epoch_task = self._bars.add_task("", total=None, visible=False, text="")
        self._last_batch = float("-inf")
        self._clock = clock
        self._open = False

    def start(self, total_units: int, done_units: int = 0) -> None:
        self._pace.start(total_units, done_units)
        self._bars.start()
        self._open = True

    def stage(self, title: str, units: int, round: int | None = None, rounds: int | None = None) -> None:
        self._pace.stage(units, round is not None)
        description = title if round is None else heading("candidate", round, rounds)
        self._bars.reset(self._stage_task, total=units, description=description, visible=True, text=f"0/{units} epochs")
        self._bars.update(self._epoch_task, visible=False)

    def batch(self, done: int, total: int) -> None:
        now = self._clock()
        if now - self._last_batch < 0.1 and done < total:
            return
        self._last_batch = now
        self._bars.update(self._epoch_task, completed=done, total=total, visible=True)

    def epoch(
        self,
        phase: str,
        name: str,
        round: int | None,
        epoch: int,
        epochs: int,
        train_loss: float,
        val_loss: float | None,
        lr: float,
        networks: int = 1,
    ) -> None:
        self._pace.units(networks)
        pace = self._pace
        self._bars.update(
            self._stage_task,
            completed=pace.stage_done,
            text=f"{pace.stage_done}/{pace.stage_total} epochs  {pace.text()}".rstrip(),
        )
        losses = f"loss {train_loss:.4f}" + ("" if val_loss is None else f"  val {val_loss:.4f}")
        self._bars.update(
            self._epoch_task,
            description=leading(name, networks),
            completed=epoch,
            total=epochs,
            visible=True,
            text=f"epoch {epoch}/{epochs}  {losses}  lr {lr:.2g}",
        )

    def round_done(self, record: Row) -> None:
        self.note(round_line(record))

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._open:
            self._bars.stop()
            self._open = False
