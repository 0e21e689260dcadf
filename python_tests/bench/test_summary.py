"""What a folder of results says together."""

from pathlib import Path

import pytest

from plantops.bench import command, summary
from plantops.bench.record import write_csv


def row(shape: str, variant: str, ratio: float, kept: int, role: str = "ours", **more) -> dict:
    return {
        "op": "conv", "group": "g", "shape": shape, "direction": "backward", "call": "graph", "variant": variant,
        "role": role, "status": "ok", "kept_bytes": kept, "best_peer": "slice", "best_peer_over_this": ratio,
        "baseline_over_this": 2 * ratio, "baseline_over_this_by_count": 8.0, "floor_over_this": 0.5, "device": "cuda",
        "dtype": "bfloat16", "hardware": "card", "torch": "t", "triton": "t", "cuda": "c", "driver": "d", "commit": "h",
        "date": "today", **more,
    }  # fmt: skip


ROWS = [
    row("a", "auto", 4.0, 100),
    row("a", "slice", 1.0, 80, "peer"),
    row("b", "auto", 0.25, 90),
    row("b", "slice", 1.0, 100, "peer"),
    {**row("b", "native", 0, 0), "status": "wrong: relative error 1", "best_peer_over_this": "", "kept_bytes": ""},
]


def test_groups_are_geometric_means_with_the_worst_shape_and_memory(tmp_path: Path):
    write_csv(tmp_path / "conv_cuda.csv", ROWS)
    write_csv(tmp_path / "other.csv", [{"name": "no benchmark"}])
    [line] = summary.summarise(summary.results(tmp_path))
    assert (line["variant"], line["shapes"]) == ("auto", 2)
    assert (line["over best peer"], line["worst"]) == ("1.00x", "0.25x")
    assert (line["over baseline"], line["by count"], line["floor / time"]) == ("2.00x", "8.00x", "50 %")
    assert line["kept / best peer's"] == "at most 1.25"
    text = summary.text(tmp_path)
    assert "card, torch t, triton t, CUDA c, driver d, commit h, today" in text
    assert "conv g b, backward, graph call: 0.25x of slice" in text
    assert "conv, native: wrong: relative error 1 (1 rows)" in text


def test_the_command_prints_and_draws(tmp_path: Path, capsys):
    timed = [{**r, "p20_ms": 1.0, "p50_ms": 2.0, "p80_ms": 3.0, "floor_ms": 0.5} for r in ROWS[:4]]
    write_csv(tmp_path / "conv_cuda.csv", timed)
    assert command.main(["--summary", str(tmp_path)]) == 0
    assert "over best peer" in capsys.readouterr().out
    assert (tmp_path / "conv_cuda_backward_graph.png").stat().st_size > 5000


def test_a_folder_without_results(tmp_path: Path):
    with pytest.raises(ValueError, match="no results of plantops bench in"):
        summary.text(tmp_path)


def test_the_geometric_mean():
    assert summary.geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="no values"):
        summary.geometric_mean([])
