"""plantops plant for any network: by name, with sites by pattern and channels in whole groups."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")

from plantops import cli
from plantops.planting import load_network
from plantops.planting.search import wanted_growths
from plantops.planting.tracing import trace
from plantops.planting.zoo import make
from plantops.train.files import RunError
from plantops.train.run import Run
from python_tests.small_models import Residual, small

SMALL = "python_tests.small_models:small"
QUICK = ["--threads", "1", "--progress", "none", "--no-report", "--batch-size", "256"]
SHORT = ["--teacher-epochs", "1", "--initial-epochs", "1", "--epochs", "1", "--max-rounds", "2"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def test_two_rounds_evaluate_and_load(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", SMALL, "--sites", "inner,stem", "--channels", "3", "--out", "run"]
    assert cli.main(["plant", *QUICK, *SHORT, *options]) == 0
    said = capsys.readouterr().out
    assert "Rounds (ended: it has had all the rounds that were allowed)" in said
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    candidates = {(line["site"], line["channels"]) for line in lines if "candidate_seconds" in line}
    assert candidates == {("stem", 3), ("inner", 4)}  # inner grows by whole groups of 2
    rounds = [line for line in lines if "round_seconds" in line]
    assert [line["round"] for line in rounds] == [0, 1, 2]

    planted = load_network("run", model=SMALL)
    assert type(planted) is Residual
    assert sum(p.numel() for p in planted.parameters()) == rounds[-1]["parameters"]
    with pytest.raises(RunError, match="run only if it is named: pass --model python_tests"):
        load_network("run")
    assert cli.main(["evaluate", "run", "--model", SMALL, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    networks = {line["name"]: line for line in lines if "test_loss" in line}
    assert facts["test_loss"] == pytest.approx(networks["planted"]["test_loss"], rel=1e-5)


def test_teacher_and_student_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", SMALL, "--teacher", SMALL, "--teacher-epochs", "0", "--initial-epochs", "0"]
    short = ["--epochs", "1", "--max-rounds", "1", "--sites", "out*", "--out", "run"]
    assert cli.main(["plant", *QUICK, *options, *short]) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    epochs = {line["name"]: line["epochs"] for line in lines if "test_loss" in line}
    assert (epochs["teacher"], epochs["initial"]) == (0, 0)


def test_weights_are_a_function_of_the_seed_and_leave_torch_alone() -> None:
    from plantops.planting.zoo import ZooFamily

    family = ZooFamily(SMALL, SMALL, 10, (1, 8, 8))
    state = torch.get_rng_state()
    first, second = (family.build((), 3, "initial").state_dict() for _ in range(2))
    other = family.build((), 4, "initial").state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_names() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = make("torchvision:resnet18", 7, (3, 32, 32))
    assert type(model) is torchvision.models.ResNet
    assert model.fc.out_features == 7
    for name, message in (
        ("torchvision:resnet", r"torchvision has no classification model 'resnet'; did you mean \w*resnet"),
        ("no_such_module:thing", "No module named 'no_such_module'"),
        ("python_tests.small_models:none", "has no function or class 'none'"),
        ("python_tests.small_models:wrong", r"must give logits \[2, 7\] for 2 images of 7 classes, got \[2, 3072\]"),
        ("resnet18", "torchvision:NAME, timm:NAME or package.module:factory, got 'resnet18'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(name, 7, (3, 32, 32))
    with pytest.raises(ValueError, match=r"torchvision:resnet18 does not take images \[1, 32, 32\] \(RuntimeError"):
        make("torchvision:resnet18", 7, (1, 32, 32))


def test_timm_names() -> None:
    pytest.importorskip("timm")
    assert make("timm:resnet10t", 5, (1, 32, 32))(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match="timm has no model 'resnet'"):
        make("timm:resnet", 5, (3, 32, 32))


def test_sites_and_whole_groups() -> None:
    plan = trace(small(5, 1), torch.zeros(2, 1, 8, 8))

    def growths(channels, *sites):
        return {growth.site: growth.channels for growth in wanted_growths(channels, plan, sites)}

    assert growths(3) == {"stem": 3, "inner": 4}
    assert growths(4, "i*") == {"inner": 4}
    assert growths({"inner": 5, "out": 2}) == {"stem": 2, "inner": 6}
    assert growths(1, "out") == {"stem": 1}  # a pattern matches any producer of a site
    with pytest.raises(ValueError, match=r"sites: layer3\.\* matches no site; the sites are stem, inner"):
        growths(1, "i*", "layer3.*")
    with pytest.raises(ValueError, match="no site in common"):
        growths({"stem": 1}, "inner")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a file when it is imported; returns the file."""
    ran, name = tmp_path / "ran", "leaves_a_trace"
    (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'w').close()\nfrom {small.__module__} import small\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return ran


TRACE = "leaves_a_trace:small"


def first_lines(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("option", ["model", "teacher", "teacher_model"])
@pytest.mark.parametrize("way", ["--resume", "--config"])
def test_no_file_has_code_run(way: str, option: str, module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"command": "plant", "data": "digits", "model": "torchvision:resnet18", "threads": 1, option: TRACE}
    Run.create("run", config).close()
    place = "run" if way == "--resume" else "run/config.json"
    for command in ("plant", "train") if option != "model" else ("plant",):
        assert cli.main([command, way, place]) == 2
        said = first_lines(capsys)
        assert (
            "names code" in said and f"give --{option.replace('_', '-')} {TRACE} again" in said
        ) or command == "train"
        assert not module.exists()
    if way == "--resume":
        assert cli.main(["plant", way, place, f"--{option.replace('_', '-')}", "elsewhere:small"]) == 2
        assert f"the run's own --{option.replace('_', '-')} {TRACE}, got elsewhere:small" in first_lines(capsys)
    assert not module.exists()


def test_a_run_of_ones_own_code_goes_on_when_it_is_named(module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", TRACE, "--sites", "stem", "--out", "run"]
    assert cli.main(["plant", *QUICK, *SHORT, *options]) == 0
    (checkpoint,) = sorted(Path("run/checkpoints").iterdir())[-1:]
    module.unlink()
    sys.modules.pop("leaves_a_trace")
    (Path("run/networks/planted/structure.json")).unlink()
    capsys.readouterr()
    readers = [
        ["plant", "--resume", "run"],
        ["evaluate", "run", "--network", "initial"],
        ["train", "--teacher", "run", "--objective", "kl", *QUICK],
        ["prune", "--network", "run", "--max-parameters", "9", *QUICK],
    ]
    for reader in readers:
        assert cli.main(reader) == 2
        assert TRACE in first_lines(capsys)
        assert not module.exists()
    assert cli.main(["plant", "--resume", "run", "--model", TRACE]) == 0
    assert module.exists()
    assert Path("run/networks/planted/structure.json").exists()
    assert checkpoint.exists()
    teacher = ["--teacher", "run", "--teacher-model", TRACE, "--objective", "kl", "--epochs", "1", "--widths", "2"]
    assert cli.main(["train", *QUICK, *teacher]) == 0


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--teacher", "torchvision:resnet18"], "goes with --model only"),
        (["--model", SMALL, "--uniform", "4"], "--uniform belongs to the paper's networks"),
        (["--model", SMALL, "--sites", "conv9"], "sites: conv9 matches no site"),
        (["--model", "nowhere.at.all:net"], "No module named 'nowhere'"),
    ):
        assert cli.main(["plant", *QUICK, *SHORT, *options]) == 2
        assert message in capsys.readouterr().err
    assert not Path("runs").exists()
