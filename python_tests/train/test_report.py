import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from plantops.train import RunError, read_run
from plantops.train.report import plots, style, write_report
from plantops.train.report.page import flat, table
from plantops.train.report.story import headline, number, percent, read_story, seconds, warnings

pytest.importorskip("matplotlib", reason="the report's plots need matplotlib")

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """A page taken apart: its text, the cells of its tables, what it refers to, and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.words, self.open, self.ids, self.references, self.rows = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [values[name] for name in ("src", "href", "xlink:href", "data") if name in values]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data.strip())
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words)).strip()


def read(run):
    path = write_report(run.path)
    assert path == run.path / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def complete(fake_run):
    run = fake_run()
    run.everything(rounds=4)
    return run


def test_the_page_stands_alone(complete):
    source = write_report(complete.path).read_text(encoding="utf-8")
    page = Page(source)
    assert all(reference.startswith("#") for reference in page.references)
    assert "url(http" not in source
    assert "<script" not in source
    assert "@import" not in source
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", source)) <= set(page.ids)
    figures = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    # accuracy 2, loss 2, overfitting 2, curves 5, candidates and widths each wide and narrow, cost 2
    assert len(figures) == 2 + 2 + 2 + 5 + 2 * 2 + 2
    for drawn in figures:
        ElementTree.fromstring(drawn)  # well-formed XML
        assert "DejaVu" not in drawn
    for stand_in in (style.INK, style.PAPER, style.FAINT):
        assert stand_in not in source


def test_every_section_and_its_numbers(complete):
    page = read(complete)
    records = {record["name"]: record for record in complete_records(complete, "network")}
    for title in (
        "Accuracy and loss against size",
        "Finished networks",
        "Training and held-out loss",
        "The search, round by round",
        "Cost",
        "How it was made",
    ):
        assert title in page.text
    for record in records.values():
        row = next(row for row in page.rows if row[0] == record["name"])
        assert f"{record['parameters']:,}" in row
        assert f"{record['test_loss']:.4f}" in row
        assert f"{100 * record['test_accuracy']:.2f} %" in row
    for record in complete_records(complete, "round"):
        row = next(row for row in page.rows if row[0] == str(record["round"]) and len(row) == 9)
        assert row[1:6] == [
            record["grown"] or "-",
            "+8" if record["grown"] else "-",
            f"{record['parameters']:,}",
            f"{record['macs']:,}",
            f"{record['train_loss']:.4f}",
        ]
    change = 100 * (records["planted"]["test_accuracy"] - records["initial"]["test_accuracy"])
    assert f"({change:+.1f} points)" in page.text
    assert "The search ended: no candidate improves." in page.text
    assert ["data", "cifar10"] in page.rows
    assert ["augment.crop", "4"] in page.rows
    assert any(row[0] == "torch" for row in page.rows)
    assert "has not come to its end" not in page.text


def complete_records(run, kind):
    return read_run(run.path).of(kind)


def figures_of(run, monkeypatch):
    """The matplotlib figures of a report, by key, before they become SVG."""
    drawn = {}

    def keep(figure, key):
        drawn[key] = figure
        return "<svg></svg>"

    monkeypatch.setattr("plantops.train.report.to_svg", keep)
    write_report(run.path)
    return drawn


def lines_of(axis):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.get_lines()}


def test_the_plotted_numbers_are_the_recorded_ones(complete, monkeypatch):
    rounds = complete_records(complete, "round")
    networks = complete_records(complete, "network")
    figures = figures_of(complete, monkeypatch)
    (held_out,), (test,) = figures["accuracy-1"].axes, figures["accuracy-2"].axes
    assert held_out.get_ylim() == test.get_ylim()
    expected = [(record["parameters"], 100 * record["val_accuracy"]) for record in rounds]
    assert lines_of(held_out)["planting, round by round"] == expected
    uniform = sorted((r["parameters"], 100 * r["test_accuracy"]) for r in networks if r["role"] == "uniform")
    assert lines_of(test)["uniform networks"] == uniform
    own = [(r["parameters"], 100 * r["test_accuracy"]) for r in networks if r["role"] in ("initial", "planted")]
    assert lines_of(test)["initial and planted network"] == own
    teacher = next(record for record in networks if record["role"] == "teacher")
    assert {up for _, up in lines_of(test)["teacher"]} == {100 * teacher["test_accuracy"]}
    assert held_out.get_xscale() == "log"  # 20k to 105k
    val_losses = [record["val_loss"] for record in rounds]
    by_round = lines_of(figures["overfitting-1"].axes[0])
    assert [up for _, up in by_round["held-out part"]] == val_losses
    assert [up for _, up in by_round["training part"]] == [record["train_loss"] for record in rounds]
    search = lines_of(figures["candidates-1"].axes[0])
    losses = [r["val_loss"] for r in complete_records(complete, "candidate") if r["site"] == "conv3"]
    assert [up for _, up in search["conv3"]] == losses
    bars = figures["candidates-1"].axes[0].get_lines()[: len(rounds)]
    assert [line.get_ydata()[0] for line in bars] == val_losses  # the level of not growing, rounds 1 to 5
    winners = [line for line in figures["candidates-1"].axes[0].get_lines() if line.get_markersize() == 12]
    assert [line.get_ydata()[0] for line in winners] == val_losses[1:]
    heights = [bar.get_height() for bar in figures["widths-1"].axes[0].patches]
    assert heights == [record["widths"][layer] for layer in rounds[0]["widths"] for record in rounds]


def test_panels_stack_and_legends_stand_below(complete, monkeypatch):
    """Every figure is a panel of one axis; those as wide as the page have a narrow twin with the same numbers."""
    figures = figures_of(complete, monkeypatch)
    for key, figure in figures.items():
        (axis,) = figure.axes
        assert axis.get_legend() is None
        wide = figure.get_figwidth() > plots.PANEL
        assert wide == (key in ("candidates-1", "widths-1"))
        figure.draw_without_rendering()
        for legend in figure.legends:
            assert legend.get_window_extent().y1 <= axis.xaxis.label.get_window_extent().y0 + 1
            assert legend.get_window_extent().width <= figure.bbox.width
    for key in ("candidates", "widths"):
        one, other = (figures[f"{key}-{which}"].axes[0] for which in ("1", "narrow"))
        assert lines_of(one) == lines_of(other)
        assert [bar.get_height() for bar in one.patches] == [bar.get_height() for bar in other.patches]
    source = write_report(complete.path).read_text(encoding="utf-8")
    assert source.count('<div class="wide">') == source.count('<div class="narrow">') == 2


def test_why_it_ended_is_said_in_words(fake_run):
    for reason, words in (
        ("max_rounds", "it has had all the rounds that were allowed"),
        ("max_params", "every further growth would have had more parameters than were allowed"),
        ("no candidate improves", "no candidate improves"),
    ):
        run = fake_run(reason.replace(" ", "-"))
        run.round(0, None, {"conv1": 8, "conv5": 8} | dict.fromkeys(("conv2", "conv3", "conv4"), 8), 1.0)
        run.run.log("stop", reason=reason, round=0)
        run.run.close()
        assert headline(read_story(run.path))[-1] == f"The search ended: {words}."


def test_a_bad_teacher_and_what_was_taken_back_are_said_on_top(fake_run):
    run = fake_run()
    verdict = {"val_loss": 1.5, "val_accuracy": 0.5, "gain": -0.25, "gain_error": 0.125, "clear": False}
    run.run.log("teacher", **verdict)
    run.run.log("discarded", name="finetune", val_loss=[1.25, None])
    run.run.close()
    text = read(run).text
    assert "its held-out loss 1.5000 is not clearly below the initial network's 1.2500" in text
    assert "the difference is -0.2500 (standard error 0.1250)" in text
    assert (
        "finetune was taken back: it would have changed the held-out loss from 1.2500 to something not finite" in text
    )

    def said(run):
        return " ".join(warnings(read_story(run.path)))

    older = fake_run("older")  # of a version that did not compare them
    older.train("teacher", "teacher", 8, 2)
    older.round(0, None, dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5"), 8), 0.1)
    older.run.close()
    assert "is not below the initial network's 0.1000" in said(older)
    better = fake_run("better")
    better.everything(rounds=1)
    assert said(better) == ""


ODD_VALUES = (None, True, -1, 1.5, 10**400, "x", "\ud800$\\frac$\x00", [], {"a": []}, [1, 2])


KINDS = ("part", "epoch", "candidate", "round", "network", "stop", "pruned", "discarded", "teacher")


@pytest.mark.parametrize("kind", KINDS)
def test_records_without_fields_and_with_odd_ones(kind, fake_run, monkeypatch):
    """Whatever a record holds, there is a report, or one sentence that names its line."""
    monkeypatch.setattr("plantops.train.report.to_svg", lambda figure, key: "<svg></svg>")
    run = fake_run()
    run.everything(rounds=1)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    pruned = {"round": 1, "removed": {"conv2": 3}, "parameters": 9, "sample_loss": [1, 2], "val_loss": [1, 2]}
    lines.append({"kind": "pruned", **pruned})
    lines.append({"kind": "discarded", "name": "finetune", "val_loss": [1.0, 2.0]})
    lines.append({"kind": "teacher", "val_loss": 1.0, "gain": 0.1, "gain_error": 0.1, "clear": False})
    place = max(place for place, record in enumerate(lines) if record["kind"] == kind)

    def refused(record):
        records = [*lines[:place], record, *lines[place + 1 :]]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        try:
            read_story(run.path)
        except RunError as error:
            return str(error)
        return None

    original = lines[place]
    fewer, odd, refusals = dict(original), dict(original), []
    for name in [name for name in original if name != "kind"]:
        without = {key: value for key, value in original.items() if key != name}
        refusals.append(refused(without))
        if refusals[-1] is None:
            del fewer[name]
        for value in ODD_VALUES:
            refusals.append(refused({**original, name: value}))
            if refusals[-1] is None:
                odd[name] = value
    assert len([text for text in refusals if text]) >= (3 if kind == "teacher" else 5)
    assert all(f"line {place + 1}: the record of a {kind}" in text for text in refusals if text)
    for record in (fewer, odd):  # what is not refused is drawn
        assert refused(record) is None
        if kind in ("epoch", "candidate", "round", "network"):
            write_report(run.path)
        assert headline(read_story(run.path)) is not None


def test_signs_that_cannot_be_drawn_are_drawn_as_others(fake_run):
    run = fake_run(note="half \ud800 pair")
    widths = dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5"), 8)
    run.round(0, None, widths, 1.0)
    run.candidate(1, "a$\\frac$\ud800\x00", widths, widths, 0.9)
    run.run.close()
    source = write_report(run.path).read_text(encoding="utf-8")
    assert "a$\\frac$\ufffd\ufffd" in source
    for drawn in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL):
        ElementTree.fromstring(drawn)


def test_a_round_that_grew_at_two_sites(fake_run, monkeypatch):
    run = fake_run()
    widths = {f"conv{layer}": 8 for layer in range(1, 6)}
    grown = {**widths, "conv1": 16, "conv3": 12}
    run.round(0, None, widths, 1.0)
    for site, loss in (("conv1", 0.9), ("conv2", 0.95), ("conv3", 0.92)):
        run.candidate(1, site, {**widths, site: grown[site]}, widths, loss)
    run.round(1, "conv3, conv1", grown, 0.88)
    figures = figures_of(run, monkeypatch)
    ringed = [line for line in figures["candidates-1"].axes[0].get_lines() if line.get_markersize() == 12]
    assert sorted(line.get_ydata()[0] for line in ringed) == [0.9, 0.92]
    texts = [(text.get_text(), text.get_weight()) for text in figures["widths-1"].axes[0].texts]
    assert ("+8 = 16", "bold") in texts
    assert ("+4 = 12", "bold") in texts
    assert texts.count(("8", "normal")) == 5 + 3


def test_the_test_part_appears_only_from_finished_networks(fake_run):
    run = fake_run()
    run.train("teacher", "teacher", 128, 5)
    run.train("initial", "initial", 8, 5)
    run.search(2, last_is_worse=False, candidates_of_last=3)
    run.run.close()
    page = read(run)
    assert "test accuracy" not in page.text
    assert "This run has not come to its end (it is in round 3, 3 candidates of it trained)" in page.text
    assert f"plantops plant --resume {run.path}" in page.text
    assert "not yet: the run has not ended" in page.text


def test_a_run_with_only_a_teacher(fake_run):
    run = fake_run()
    run.train("teacher", "teacher", 128, 30, reached=12)
    run.run.close()
    page = read(run)
    assert "so far: teacher" in page.text
    assert "No round of the search is finished yet." in page.text


def test_a_run_in_which_nothing_happened(fake_run):
    run = fake_run()
    run.run.close()
    assert "Nothing has been trained in this run yet." in read(run).text


def test_a_single_network(fake_run):
    run = fake_run(command="train")
    run.train("uniform", "uniform-64", 64, 4)
    run.network("uniform", "uniform-64", 64)
    run.run.close()
    page = read(run)
    assert page.text.startswith("run: plantops on cifar10 Training on cifar10")
    assert "uniform-64: 281,994 parameters" in page.text
    assert "The search" not in page.text
    assert "Accuracy and loss against size" not in page.text  # one point compares nothing
    assert "has not come to its end" not in page.text


def test_what_was_pruned_between_rounds(fake_run, monkeypatch):
    run = fake_run()
    run.search(3)
    sizes = {"widths": run.widths, "macs": 1}
    run.run.log(
        "pruned", round=1, removed={"conv2": 3, "conv5": 1}, parameters=12_345, val_accuracy=0.5, **sizes,
        sample_loss=[0.75, 0.5], val_loss=[1.25, 1.125],
    )  # fmt: skip
    run.run.log(
        "pruned", round=3, removed={}, parameters=23_456, val_accuracy=0.5, **sizes,
        sample_loss=[0.5, 0.5], val_loss=[1.0, None],
    )  # fmt: skip
    run.network("initial", "initial", 8)
    run.network("planted", "planted", run.widths)
    run.run.close()
    page = read(run)
    rounds = complete_records(run, "round")
    first, last = ([row for row in page.rows if row[0] == str(number) and len(row) == 5] for number in (1, 3))
    assert first[0][1:] == [
        "conv2 -3, conv5 -1",
        f"{rounds[1]['parameters']:,} \u2192 12,345",
        "0.7500 \u2192 0.5000",
        "1.2500 \u2192 1.1250",
    ]
    assert last[0][1:] == [
        "nothing",
        f"{rounds[3]['parameters']:,} \u2192 23,456",
        "0.5000 \u2192 0.5000",
        "1.0000 \u2192 -",
    ]
    assert "Pruning between rounds took away 4 channels on the way." in page.text
    bars = figures_of(run, monkeypatch)["candidates-1"].axes[0].get_lines()[:3]
    assert [line.get_ydata()[0] for line in bars] == [rounds[0]["val_loss"], 1.125, rounds[2]["val_loss"]]


def test_a_search_of_ones_own_program(fake_run):
    """Planter alone records rounds and a stop, but no finished networks."""
    run = fake_run(command=None)
    run.search(2)
    run.run.close()
    page = read(run)
    assert "The search ended: no candidate improves." in page.text
    assert "has not come to its end" not in page.text


def test_a_training_that_diverged(fake_run):
    run = fake_run()
    nan = float("nan")
    for epoch in (1, 2, 3):
        run.run.log(
            "epoch", phase="teacher", name="teacher", epoch=epoch, epochs=3, lr=9.0, train_loss=nan, val_loss=nan
        )
    run.round(0, None, dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5"), 8), 2.0)
    run.run.log("candidate", round=1, site="conv1", channels=8, parameters=9, val_loss=nan, candidate_seconds=1.0)
    run.run.close()
    assert "held-out cross entropy" in read(run).text


def test_other_runs_beside_this_one(complete, fake_run, monkeypatch):
    other = fake_run("elsewhere")
    other.random.seed(3)
    other.everything(rounds=2)
    page = Page(write_report(complete.path, compare=[other.path]).read_text(encoding="utf-8"))
    assert "planting in elsewhere" in page.text
    mine, theirs = ([row for row in page.rows if row[:2] == ["planted", name]] for name in ("run", "elsewhere"))
    assert len(mine) == len(theirs) == 1
    with pytest.raises(RunError, match="is not a run"):
        write_report(complete.path, compare=[complete.path / "absent"])


def test_what_a_user_wrote_is_only_text(fake_run):
    run = fake_run(data="<script>alert(1)</script>", note="a & b")
    run.run.close()
    source = write_report(run.path).read_text(encoding="utf-8")
    assert "<script" not in source
    assert ["note", "a & b"] in Page(source).rows


def test_the_same_records_give_the_same_page(complete):
    first = write_report(complete.path).read_bytes()
    assert write_report(complete.path).read_bytes() == first


def test_without_matplotlib_the_command_is_named(complete, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RunError, match=r"pip install 'plantops\[plots\]'"):
        write_report(complete.path)
    assert not (complete.path / "report.html").exists()


def test_matplotlib_is_left_as_it_was(complete):
    code = (
        "import sys, matplotlib; names = [name for name in matplotlib.rcParams if name != 'backend']; "
        "before = [matplotlib.rcParams[name] for name in names]; "
        "from plantops.train.report import write_report; write_report(sys.argv[1]); "
        "assert [matplotlib.rcParams[name] for name in names] == before; "
        "assert 'matplotlib.pyplot' not in sys.modules  # it would choose a backend for the whole process"
    )
    subprocess.run([sys.executable, "-c", code, str(complete.path)], check=True, timeout=120)


def test_no_run_no_report(tmp_path):
    with pytest.raises(RunError, match="is not a run"):
        write_report(tmp_path)


def test_headline_says_a_loss_as_plainly_as_a_gain(fake_run):
    run = fake_run()
    run.search(1)
    run.network("initial", "initial", 8)
    run.network("planted", "planted", 16, extra=0.9)
    run.run.close()
    sentences = headline(read_story(run.path))
    assert re.search(r"1 round of planting took .* test accuracy fell from .* \(-\d+\.\d points\)", sentences[0])


def test_words_for_numbers():
    assert [percent(0.8435), percent(None), number(0.48251), number(None)] == ["84.35 %", "-", "0.4825", "-"]
    assert [seconds(value) for value in (None, 0.85, 12.34, 245.2, 3725)] == [
        "-",
        "850 ms",
        "12.3 s",
        "4 min 05 s",
        "1 h 02 min",
    ]
    assert flat({"a": {"b": [1, 2], "c": None}, "d": True, "e": []}) == [
        ("a.b", "1, 2"),
        ("a.c", "none"),
        ("d", "True"),
        ("e", "none"),
    ]
    assert table(["a"], []) == ""


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", sorted({*style.ROLES.values(), *style.LAYERS, style.OTHER}))
def test_contrast_on_the_light_and_the_dark_page(colour):
    """WCAG 2.1, 1.4.11: graphical objects have a contrast of at least 3:1."""
    for background in ("#ffffff", "#14171b"):
        lighter, darker = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3.0
