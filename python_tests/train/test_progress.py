import io
import sys

import pytest

from plantops.train import NullProgress, PlainProgress, RichProgress, make_progress
from plantops.train.pace import Pace, duration
from plantops.train.progress import cell, table_lines

ROUND = {
    "round": 4, "grown": "conv2, conv1", "channels": 8, "widths": {}, "parameters": 12345, "val_loss": 0.5,
    "val_accuracy": 0.881, "round_seconds": 72.4,
}  # fmt: skip


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_pace_for_the_stage_and_at_most():
    clock = Clock()
    pace = Pace(clock)
    pace.start(total=100, done=0)
    pace.stage(4, in_round=False)
    assert pace.text() == ""
    clock.now += 30
    pace.units()
    assert (pace.stage_seconds(), pace.most_seconds()) == (90.0, None)  # a teacher's pace says nothing about rounds
    assert pace.text() == "eta 1:30"
    pace.stage(10, in_round=True)  # the teacher stopped after one epoch of four: the other three are not owed
    clock.now += 20
    pace.units()
    pace.units()
    assert pace.done == 6
    assert (pace.stage_seconds(), pace.most_seconds()) == (80.0, 940.0)
    assert pace.text() == "eta 1:20 (at most 15:40 in all)"


def test_a_resumed_pace_counts_what_was_done():
    clock = Clock()
    pace = Pace(clock)
    pace.start(total=50, done=40)
    pace.stage(10, in_round=True)
    clock.now += 3
    pace.units()
    assert (pace.stage_seconds(), pace.most_seconds()) == (27.0, 27.0)
    assert pace.text() == "eta 0:27"


def test_duration_and_cell():
    assert [duration(value) for value in (0, 7.4, 130, 3730, -1)] == ["0:00", "0:07", "2:10", "1:02:10", "0:00"]
    assert [cell(value) for value in (1234567, 0.12345, None, "conv1", True)] == [
        "1,234,567",
        "0.1235",
        "-",
        "conv1",
        "True",
    ]


def test_plain_lines():
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, interval=2.0, clock=clock)
    progress.start(1000)
    progress.stage("teacher", 2)
    clock.now += 1
    progress.epoch("teacher", "teacher", None, 1, 2, 1.5, 1.25, 0.1)
    clock.now += 1
    progress.epoch("teacher", "teacher", None, 2, 2, 1.0, None, 0.1)  # the last one shows although it is early
    progress.stage("round 3", 30, round=3, rounds=10)
    for epoch in range(1, 7):
        clock.now += 1
        progress.batch(1, 2)
        progress.epoch("candidate", "conv2", 3, epoch, 6, 0.8712, 0.8691, 0.1)
    progress.stage("round 4", 30, round=4, rounds=10)
    clock.now += 5
    progress.epoch("candidate", "conv2", 4, 1, 6, 0.8712, 0.8691, 0.1, 5)
    progress.note("conv2 wins")
    progress.round_done(ROUND)
    progress.round_done({**ROUND, "round": 0, "grown": None, "channels": 0, "val_loss": None, "val_accuracy": None})
    progress.close()
    assert stream.getvalue().splitlines() == [
        "teacher  epoch 1/2  loss 1.5000  val 1.2500  eta 0:01",
        "teacher  epoch 2/2  loss 1.0000",
        "round 3/10  conv2  epoch 2/6  loss 0.8712  val 0.8691  eta 0:28 (at most 16:36 in all)",
        "round 3/10  conv2  epoch 4/6  loss 0.8712  val 0.8691  eta 0:26 (at most 16:34 in all)",
        "round 3/10  conv2  epoch 6/6  loss 0.8712  val 0.8691  eta 0:24 (at most 16:32 in all)",
        "round 4/10  conv2 leads 5  epoch 1/6  loss 0.8712  val 0.8691  eta 0:25 (at most 16:03 in all)",
        "conv2 wins",
        "round 4: conv2, conv1 +8, 12,345 parameters, held-out loss 0.5000, accuracy 88.10 %, 1:12",
        "initial network, 12,345 parameters, held-out loss -",
    ]


def test_table_of_nothing_and_of_gaps():
    assert table_lines([]) == []
    assert table_lines([{"a": None, "b": "x"}, {"b": "long"}]) == ["a  b", "-  ----", "-  x", "-  long"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play(progress):
    progress.start(40, 2)
    progress.stage("teacher", 2)
    progress.batch(1, 3)
    progress.epoch("teacher", "teacher", None, 1, 2, 1.5, None, 0.1)
    progress.stage("round 3", 30, round=3, rounds=10)
    progress.batch(3, 3)
    progress.epoch("candidate", "conv2", 3, 4, 6, 0.8712, 0.8691, 0.1)
    progress.note("not [bold]markup[/bold]")
    progress.round_done(ROUND)
    progress.close()
    progress.close()


def test_rich_bars(monkeypatch):
    pytest.importorskip("rich", reason="bars need rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    stream = Terminal()
    play(RichProgress(stream))
    text = stream.getvalue()
    for part in (
        "not [bold]markup[/bold]",
        "conv2, conv1 +8",
        "12,345",
        "round 3/10",
        "1/30 epochs",
        "epoch 4/6",
        "0.8691",
    ):
        assert part in text
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l")  # the cursor is shown again


def test_which_progress(monkeypatch):
    assert isinstance(make_progress("auto", io.StringIO()), PlainProgress)
    assert isinstance(make_progress("none"), NullProgress)
    play(make_progress("none"))
    with pytest.raises(ValueError, match="auto, rich, plain or none, got 'fancy'"):
        make_progress("fancy")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(make_progress("auto", Terminal()), PlainProgress)
    with pytest.raises(ImportError, match=r"pip install 'plantops\[cli\]'"):
        make_progress("rich")
