"""A benchmark from options to table, CSV, plots and trace."""

import json
from pathlib import Path

import pytest

from plantops.bench import command, plots, registry
from plantops.bench.case import OURS
from plantops.bench.record import COMMIT, commit, environment, read_csv, table, write_csv

QUICK = ["--rounds", "2", "--no-compile", "--busy", "--impls", "auto,aten"]
PROVENANCE = ("hardware", "driver", "torch", "triton", "cuda", "commit", "date", "threads", "plantops")


@pytest.fixture(autouse=True)
def _quick_ceilings(monkeypatch):
    monkeypatch.setattr("plantops.bench.ceilings.COPY_BYTES", {"cpu": 1 << 22})
    monkeypatch.setattr("plantops.bench.ceilings.MATMUL_SIZE", {"cpu": 128})
    monkeypatch.setattr("plantops.bench.ceilings.CONVOLUTION", (1, 8, 8))


def test_a_run_writes_rows_plots_and_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["planted_conv2d", *QUICK, "--shape", "2,4,2,3,2,3,6,planted", "--trace", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    rows = read_csv(tmp_path / "planted_conv2d_cpu.csv")
    kinds = [(row["direction"], row["variant"]) for row in rows]
    names = ["auto", "aten", "split + cat", "ATen slice", "masked"]
    assert kinds == [(d, v) for d in ("forward + backward", "backward") for v in names]
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert {**row}.keys() >= set(PROVENANCE)
        assert row["hardware"]
        assert row["device"] == "cpu"
    printed = capsys.readouterr().out
    assert "best peer / this" in printed
    for kind in ("both", "backward"):
        assert (tmp_path / f"planted_conv2d_cpu_{kind}_eager.svg").read_text().startswith("<?xml")
        assert (tmp_path / f"planted_conv2d_cpu_{kind}_eager.png").stat().st_size > 5000
    [trace] = tmp_path.glob("trace_*.json")
    names_in_trace = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert set(names) <= names_in_trace


def test_a_wrong_kernel_of_ours_gets_no_figure_and_fails_the_run(tmp_path: Path, capsys, monkeypatch):
    from plantops.bench import losses

    right = losses.our_loss
    monkeypatch.setattr(losses, "our_loss", lambda op, impl: lambda *args: right(op, impl)(*args) * 1.01)
    arguments = ["losses", *QUICK, "--shape", "8x5", "--no-plots", "--out", str(tmp_path)]
    assert command.main(arguments) == 1
    rows = {row["variant"]: row for row in read_csv(tmp_path / "losses_cpu.csv")}
    assert rows["aten"]["status"].startswith("wrong: relative error 1.0e-02")
    assert rows["aten"]["role"] == OURS
    assert rows["aten"]["p50_ms"] == ""
    assert rows["eager"]["status"] == "ok"
    assert "no figure for aten: wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing"],
            "no benchmark 'nothing'; there are losses, planted_conv2d, planted_linear, group_sparsity, qsne_kl",
        ),
        (["losses", "--rounds", "0"], "at least 1, got '0'"),
        (["--device", "tpu"], "--device must be cpu, cuda"),
        (["--device", "cuda:99"], "CUDA devices are visible"),
        (["--impls", "auto,best"], "got best"),
        (["losses", "--only", "no such case"], "leaves no case"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_mistakes_are_value_errors(arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        command.main(arguments)


def test_a_check_times_nothing_and_says_what_is_right(capsys, monkeypatch):
    small = ["losses", "planted_conv2d", "--small", "--check", "--no-compile", "--device", "cpu"]
    assert command.main([*small, "--impls", "auto,aten"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 + 7
    assert all("right: auto, aten" in line for line in lines)

    from plantops.bench import planted_conv2d

    monkeypatch.setattr(planted_conv2d, "ours", lambda t, kind, impl: lambda x: x * 0 + crash())
    assert command.main([*small, "--only", "9x9x5", "--impls", "aten"]) == 1
    assert "aten: failed: RuntimeError: crashed" in capsys.readouterr().out


def crash():
    raise RuntimeError("crashed")


def test_every_benchmark_has_cases_for_both_devices():
    for name in registry.MODULES:
        found = registry.benchmark(name)
        assert found.about
        for flags in (["--device", "cpu"], ["--device", "cpu", "--full"], ["--device", "cpu", "--small"]):
            settings = command.settings_of(command.parser().parse_args(flags))
            cases = found.cases(settings)
            assert len({case.name for case in cases}) == len(cases) > 1


def test_labels_leave_out_what_all_cases_share():
    cases = [("op", "a", "32", ""), ("op", "b", "32", "")]
    assert plots.labels(cases) == ("op, 32", {cases[0]: "a", cases[1]: "b"})
    assert plots.labels(cases[:1]) == ("", {cases[0]: "op  a  32  "})


def test_csv_and_table_round_trip(tmp_path: Path):
    rows = [{"a": 1, "b": "x, y"}, {"a": 2.5, "c": None}]
    path = write_csv(tmp_path / "new" / "t.csv", rows)
    assert read_csv(path) == [{"a": "1", "b": "x, y", "c": ""}, {"a": "2.5", "b": "", "c": ""}]
    assert table(rows, ["a", "b"]) == "a      b\n1      x, y\n2.500"


def test_the_commit_can_be_given_where_there_is_no_history(monkeypatch):
    monkeypatch.setenv(COMMIT, "abc123")
    commit.cache_clear()
    try:
        assert environment()["commit"] == "abc123"
    finally:
        commit.cache_clear()
