"""What the last lines of bench_sweep.py say, from rows with known numbers."""

import sys
from pathlib import Path
from typing import Any

import pytest

import plantops


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(plantops.__file__).parents[1] / "benchmarks"), *sys.path])


def row(variant: str, milliseconds: float, ratio: float, sites: int = 5, part: str = "steps", **more: Any) -> Any:
    case = {"width": 16, "channels": 4, "batch": 128, "sites": sites}
    return {**case, "part": part, "variant": variant, "p50_ms": milliseconds, "ratio": ratio, **more}


@pytest.mark.usefixtures("scripts")
def test_the_older_build_beside_this_one(tmp_path: Path) -> None:
    from against import Build, ratio_rows

    rows = [row("shared", 2.0, 1), row("loop", 9.0, 1), row("shared (older)", 3.0, 1), row("one (older)", 18.0, 1)]
    assert ratio_rows(rows, {"loop": "one"}) == [
        "shared: 1.50x as fast as the older build",
        "loop: 2.00x as fast as the older build",
    ]
    with pytest.raises(SystemExit, match="there is no plantops in this folder"):
        Build(tmp_path, "training", {}, "wall", 1)


@pytest.mark.usefixtures("scripts")
def test_ratios_growth_and_the_teachers_share() -> None:
    from sweep_report import ratios

    rows = [
        row("shared", 8.0, 1.0, sites=4, own_gmacs=0.4),
        row("shared", 10.0, 1.0, own_gmacs=0.5),
        row("loop, cached logits", 60.0, 6.0),
        row("split + cat, cached, compiled", 40.0, 4.0),
        row("shared, crops", 126.0, 1.0, part="crops"),
        row("sweep without teacher, crops", 20.0, 0.159, part="crops"),
        row("teacher alone", 100.0, 0.794, part="crops"),
    ]
    lines = list(ratios(rows))
    assert lines[1] == (
        "steps, w=16, 4 channels, batch 128, 5 sites: shared 10.00 ms; loop, cached logits 6.00x, "
        "split + cat, cached, compiled 4.00x"
    )
    assert lines[2].strip() == "best of compiled and captured loops: split + cat, cached, compiled 4.00x"
    assert lines[4].strip() == "shared over teacher (100.0 ms) plus sweep (20.0 ms): 1.050x"
    assert lines[5].endswith("the fifth site adds 25.0 % to the time of four, 25.0 % to their arithmetic")
    assert len(lines) == 6


@pytest.mark.usefixtures("scripts")
def test_rows_of_a_part_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    from bench_sweep import in_order, kept_rows
    from harness import write_csv

    path = write_csv(tmp_path / "rows.csv", [row("shared", 1.0, 1.0), row("shared", 2.0, 1.0, part="search")])
    new = [row("shared", 3.0, 1.0, part="search")]
    rows = in_order(new + kept_rows(path, new))
    assert [(entry["part"], float(entry["p50_ms"])) for entry in rows] == [("steps", 1.0), ("search", 3.0)]


@pytest.mark.usefixtures("scripts")
def test_peak_bytes_sees_what_is_held_on_the_way() -> None:
    import torch
    from sweep_memory import peak_bytes

    megabytes = 64
    measured = peak_bytes(lambda: torch.ones(megabytes << 18).sum(), "cpu")
    if measured == "":
        pytest.skip("this system does not let a process reset its peak")
    # The system counts resident pages in batches: it may be some dozens of them short.
    assert (megabytes - 1) << 20 <= int(measured) < 2 * (megabytes << 20)
