"""The command line: what it prints, what it leaves behind, and that every mistake is one message with status 2."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")

from plantops import cli
from plantops._cli import parse, running
from plantops._cli.mistakes import Mistake
from plantops._cli.options import COMMANDS, PlantOptions
from plantops.models import count_parameters
from plantops.planting import load_network
from plantops.train import files
from plantops.train.run import read_run

QUICK = ["--threads", "1", "--progress", "none", "--no-report", "--batch-size", "256"]
SHORT = ["--teacher-width", "4", "--teacher-epochs", "1", "--initial-epochs", "1", "--epochs", "1", "--max-rounds", "1"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("planted") / "run"
    assert cli.main(["plant", *QUICK, *SHORT, "--out", str(run)]) == 0
    return run


# What it does


def test_plant_prints_the_configuration_the_rounds_and_the_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plant", *QUICK, *SHORT, "--uniform", "2", "--uniform-epochs", "1"]) == 0
    said = capsys.readouterr().out
    for word in (
        "plantops plant in runs/plant-digits-1",
        "digits, its defaults but --teacher-width 4",
        "all options: runs/plant-digits-1/config.json",
        "Rounds (ended:",
        "(initial)",
        "uniform-2",
    ):
        assert word in said
    stored = json.loads(Path("runs/plant-digits-1/config.json").read_text())["config"]
    assert (stored["command"], stored["epochs"], stored["lr"]) == ("plant", 1, 0.1)


def test_train_and_teacher_and_a_loaded_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["teacher", *QUICK, "--width", "4", "--epochs", "1", "--out", "t"]) == 0
    widths = ["--widths", "2,3,2,3,2", "--epochs", "1", "--loss", "kl"]
    assert cli.main(["train", *QUICK, *widths, "--teacher", "t", "--out", "n"]) == 0
    said = capsys.readouterr().out
    assert "2 3 2 3 2" in said
    roles = [json.loads(line).get("role") for line in Path("n/metrics.jsonl").read_text().splitlines()]
    assert [role for role in roles if role] == ["uniform"]
    assert [module.out_channels for module in load_network("n").children() if hasattr(module, "out_channels")] == [
        *(2, 3, 2, 3, 2)
    ]


@pytest.mark.parametrize(
    ("arguments", "option", "name"),
    [
        (["train", "--widths", "2", "--epochs", "1", "--loss", "kl"], "--teacher", "teacher"),
        (["plant", *SHORT], "--teacher", "teacher"),
        (["prune", "--max-params", "2000"], "--network", "planted"),
    ],
)
def test_the_teacher_of_a_run_teaches(
    arguments: list[str], option: str, name: str, planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, *QUICK, option, str(planted), "--out", "second"]) == 0
    parameters = count_parameters(load_network(planted, name))
    assert f"{option}: {name} of {planted}, {parameters:,} parameters\n" in capsys.readouterr().out
    if arguments[0] == "plant":
        ours, theirs = (load_network(run, "teacher").state_dict() for run in ("second", planted))
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    # A network's own folder is that network.
    one = planted / "networks" / "initial"
    assert cli.main(["train", *QUICK, *["--widths", "2", "--epochs", "1", "--loss", "kl"], "--teacher", str(one)]) == 0
    assert f"--teacher: initial of {one}" in capsys.readouterr().out


def test_train_with_a_regularizer(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--widths", "4", "--epochs", "1", "--regularizer", "group_lasso", "--regularizer-groups", "neuron"]
    assert cli.main(["train", *QUICK, *flags, "--regularizer-strength", "0.01", "--out", "r"]) == 0
    assert cli.main(["train", *QUICK, *flags[:4], "--out", "plain"]) == 0
    losses = []
    for run in ("r", "plain"):
        lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        losses += [line["train_loss"] for line in lines if line.get("kind") == "epoch"]
    assert losses[0] > losses[1] + 0.01
    assert "--regularizer-strength must be 0 or more, got -1.0" in one_line(
        ["train", *QUICK, "--regularizer", "l1", "--regularizer-strength", "-1"], capsys
    )


def test_distill_adversarial_trains_and_plants(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--distill", "adversarial", "--discriminator-lr", "0.01"]
    width = ["--widths", "2", "--epochs", "1", "--teacher-width", "4", "--teacher-epochs", "1"]
    assert cli.main(["train", *QUICK, *width, *flags, "--schedule", "tenths", "--out", "t"]) == 0
    assert cli.main(["plant", *QUICK, *SHORT, "--loss", "adversarial", "--out", "p"]) == 0
    for run, lr in (("t", 0.01), ("p", 1e-3)):
        config = json.loads((Path(run) / "config.json").read_text())["config"]
        assert (config["objective"], config["discriminator_lr"]) == ("adversarial", lr)


def test_prune_meets_its_budget_and_says_what_it_is_worth(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--network", str(planted), "--max-params", "2000", "--finetune-epochs", "1", "--samples", "200"]
    assert cli.main(["prune", *QUICK, *flags, "--progress", "plain", "--out", "q"]) == 0
    said = capsys.readouterr().out
    assert "One forward of 64 images" in said
    lines = [json.loads(line) for line in Path("q/metrics.jsonl").read_text().splitlines()]
    networks = {line["name"]: line for line in lines if line.get("kind") == "network"}
    assert list(networks) == ["initial", "pruned", "finetuned"]
    assert networks["finetuned"]["parameters"] == networks["pruned"]["parameters"] <= 2000
    assert networks["initial"]["parameters"] > 2000
    assert sum(1 for line in lines if line.get("kind") == "epoch") == 1
    steps = [line for line in lines if line.get("kind") == "prune"]
    shown = [line for line in said.splitlines() if line.startswith("step ")]
    assert len(shown) == len(steps)
    assert f"step {len(steps)}  {steps[-1]['parameters']:,} parameters" in shown[-1]
    assert steps[-1]["parameters"] == networks["pruned"]["parameters"]
    pruned = load_network("q", "pruned")
    assert sum(parameter.numel() for parameter in pruned.parameters()) == networks["pruned"]["parameters"]
    assert "say how far to prune" in one_line(["prune", *QUICK, "--network", str(planted)], capsys)
    assert "give the run whose network" in one_line(["prune", *QUICK, "--max-params", "9"], capsys)


def test_evaluate_gives_what_the_run_recorded(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (planted / "metrics.jsonl").read_text().splitlines()]
    for name in ("teacher", "planted"):
        (record,) = (line for line in lines if line.get("kind") == "network" and line["name"] == name)
        assert cli.main(["evaluate", str(planted), "--network", name, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        for key in ("test_loss", "test_accuracy", "parameters", "macs"):
            assert facts[key] == record[key]


def test_a_config_file_is_the_same_run_and_flags_win(planted: Path) -> None:
    config = ["--config", str(planted / "config.json")]
    assert cli.main(["plant", *config, "--out", "again"]) == 0
    drop = ("_seconds",)

    def records(run: Path) -> list[dict[str, Any]]:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.endswith(drop)} for line in lines]

    assert records(Path("again")) == records(planted)
    options = parse.resolve(PlantOptions, "plant", [*config, "--epochs", "7"])
    assert (options.epochs, options.teacher_epochs, options.out) == (7, 1, None)


def test_defaults_follow_the_data() -> None:
    options = parse.resolve(PlantOptions, "plant", ["--data", "cifar100"])
    assert (options.width, options.teacher_width, options.crop, options.flip) == (16, 128, 4, True)
    assert parse.resolve(PlantOptions, "plant", ["--data=stl10"]).teacher_width == 64
    assert parse.resolve(PlantOptions, "plant", ["--data=stl10", "--no-flip"]).flip is False


def test_the_published_procedure_has_nothing_added() -> None:
    options = parse.resolve(PlantOptions, "plant", ["--data", "cifar10", "--preset", "paper"])
    assert (options.select, options.sites_per_round, options.joint_epochs, options.prune_every) == ("loss", 1, 0, 0)
    assert (options.finetune_epochs, options.path_epochs, options.objective, options.temperature) == (
        0,
        None,
        "kl",
        1.0,
    )
    assert (options.epochs, options.initial_epochs, options.initial_objective) == (100, 100, "ce")


def test_info_names_every_op_and_how_to_change_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(Path(cli.__file__).parents[1]))
    monkeypatch.setenv("PLANTOPS_CPU_ISA", "baseline")
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert "in ~/plantops" in said
    assert os.environ["HOME"] not in said
    assert "  PLANTOPS_CPU_ISA=baseline\n" in said
    for word in (
        "plantops ",
        "compiled module:",
        "planted_conv2d",
        "kl_div_logits",
        "not live:",
        "devices:",
        "machine:",
        "free on this disk:",
        "environment:",
        "extras:",
    ):
        assert word in said


def test_help_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "usage: plantops COMMAND" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0


HELP = """
import sys
from plantops import cli
assert cli.main(sys.argv[1:]) == 0
print([name for name in ("torch", "numpy", "rich") if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plant", "--help"], ["teacher", "-h", "--data", "cifar10"], ["--version"]]
)
def test_help_is_there_without_torch(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-c", HELP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_grouped_and_has_the_defaults_of_the_data_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plant", "--help", "--data", "cifar10", "--preset", "paper"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    topics = [line.partition(":")[0] for line in lines[lines.index("Data") :] if line and not line.startswith(" ")]
    assert topics[:5] == ["Data", "Teacher", "Initial network", "Candidates", "Search"]
    for line in (
        "--teacher-width N           Width of the teacher that is trained here. [128]",
        "[paper]",
        "[cifar10]",
    ):
        assert line in said
    for command, kind in COMMANDS.items():
        assert cli.main([command, "--help"]) == 0
        said = capsys.readouterr().out
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            line = next(line for line in said.splitlines() if line.startswith(f"  {name_of(field.name)}"))
            assert line[30:].strip() or len(line) > 28  # every option is explained


def name_of(field: str) -> str:
    return "RUN" if field == "run" else parse.as_flag(field)


def test_old_names_of_options_still_work(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--loss", "--distill", "--objective"):
        assert parse.resolve(PlantOptions, "plant", [flag, "kd"]).objective == "kd"
    old = {"loss": "kd", "initial_loss": "kl", "uniform_loss": "ce", "max_params": 9}
    new = {"objective": "kd", "initial_objective": "kl", "uniform_objective": "ce", "max_parameters": 9}
    for values in (old, new):
        options = dataclasses.asdict(parse.resolve_again(PlantOptions, "plant", values, []))
        assert {name: options[name] for name in new} == new
    assert "--max-parameters must be at least 1, got 0" in one_line(["plant", "--max-parameters", "0"], capsys)
    assert "--max-parameters must be at least the initial" in one_line(["plant", "--max-parameters", "9"], capsys)


# Mistakes


def one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    (line,) = said.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("plnt", "no such command; the commands are plant, train,"),
        ("plant --foo 3", "Unrecognized options: --foo"),
        ("plant --epochs many", "--epochs"),
        ("plant --epoch 3", "Did you mean --epochs"),
        ("plant epochs", "'epochs' belongs to no option"),
        ("plant -e 3", "'-e' belongs to no option"),
        ("plant --epochs", "--epochs needs a value"),
        ("plant --epochs many", "--epochs must be a whole number, got 'many'."),
        ("plant --epochs 1.5", "--epochs must be a whole number, got '1.5'."),
        ("plant --lr fast", "--lr must be a number, got 'fast'."),
        ("plant --flip=perhaps", "--flip must be true or false, got 'perhaps'."),
        ("plant --loss mse", "--loss must be one of kl, kd, ce, adversarial, got 'mse'"),
        ("plant --epochs 0", "--epochs must be at least 1, got 0"),
        ("plant --seed -1", "--seed must be at least 0, got -1"),
        ("plant --split-seed -1", "--split-seed must be at least 0, got -1"),
        ("plant --checkpoint-seconds -1", "--checkpoint-seconds must be at least 0, got -1.0"),
        ("plant --checkpoint-seconds nan", "--checkpoint-seconds must be a finite number, got nan"),
        ("plant --batch-size 0", "--batch-size must be at least 1, got 0"),
        ("plant --crop -1", "--crop must be at least 0, got -1"),
        ("plant --lr -1", "--lr must be above 0, got -1.0"),
        ("plant --lr inf", "--lr must be a finite number, got inf"),
        ("plant --teacher-lr 0", "--teacher-lr must be above 0, got 0.0"),
        ("plant --initial-lr -2", "--initial-lr must be above 0, got -2.0"),
        ("plant --uniform-lr 0", "--uniform-lr must be above 0, got 0.0"),
        ("plant --finetune-lr 0", "--finetune-lr must be above 0, got 0.0"),
        ("plant --momentum 1", "--momentum must be from 0 to below 1, got 1.0"),
        ("plant --teacher-epochs 0", "--teacher-epochs must be an integer of at least 1, got 0"),
        ("plant --width 0", "--width must be at least 1, got 0"),
        ("plant --teacher-width 0", "--teacher-width must be at least 1, got 0"),
        ("plant --model torchvision:resnet81", "did you mean"),
        ("teacher --width 0", "--width must be at least 1, got 0"),
        ("plant --channels 0", "--channels must be a number, or layers with numbers"),
        ("plant --channels conv1", "--channels must be a number, or layers with numbers"),
        ("plant --channels conv9=2", "--channels: conv9 cannot grow: no such layer"),
        ("plant --channels fc1=2", "fc1 cannot grow"),
        ("plant --max-params 10", "--max-params must be at least the initial network's 2198, got 10"),
        ("plant --init zero_out", "--init zero_out cannot start conv1"),
        ("plant --init copy --channels 8", "--init copy starts at most 3 channels at conv1, one a copy, got 8"),
        ("plant --uniform 4,x", "--uniform must be numbers of at least 1"),
        ("plant --val-fraction 1.5", "--val-fraction must lie between 0 and 1"),
        ("plant --data mnist", "--data must be one of digits"),
        ("plant --data cifar10 --data-root nowhere", "CIFAR-10 was not found"),
        ("plant --data folder:nowhere", "there is no folder nowhere"),
        ("plant --device tpu", "--device must be cpu, cuda, cuda:N or auto"),
        ("plant --device cuda:99", "CUDA devices are visible"),
        ("plant --device cpu --precision fp16", "--precision fp16 needs a CUDA device"),
        ("plant --threads 0", "--threads must be at least 1, got 0"),
        ("plant --teacher nowhere", "nowhere does not exist"),
        ("plant --resume", "--resume needs a value"),
        ("plant --resume nowhere", "nowhere is not a run"),
        ("plant --config nowhere.json", "nowhere.json: No such file"),
        ("train --widths 4,4", "--widths must be five numbers"),
        ("train --widths 4,4,4,4,zero", "--widths must be numbers of at least 1"),
        ("train --teacher x", "--objective ce does not use it"),
        ("evaluate", "give the folder of a run"),
        ("evaluate nowhere", "nowhere does not exist"),
        ("report nowhere", "nowhere is not a run"),
        ("bench nothing", "no benchmark 'nothing'"),
        ("info --all", "it takes no options"),
    ],
)
def test_mistakes(arguments: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(arguments.split(), capsys)
    assert line.startswith(f"plantops {arguments.split()[0]}: ")
    assert text in line
    assert not Path("runs").exists()


def test_a_folder_that_is_taken(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--resume {planted}" in one_line(["plant", *QUICK, "--out", str(planted)], capsys)
    Path("full").mkdir()
    Path("full/file").touch()
    assert "is not empty" in one_line(["plant", *QUICK, "--out", "full"], capsys)


def test_what_a_run_that_ended_lacks_is_written(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process may be killed after the last checkpoint: its networks or its report are then not there yet."""
    pytest.importorskip("matplotlib", reason="the report's plots need matplotlib")
    run = Path("copy")
    shutil.copytree(planted, run)
    metrics, checkpoints = (run / "metrics.jsonl").read_bytes(), sorted(os.listdir(run / "checkpoints"))
    structure = (run / "networks" / "planted" / "structure.json").read_bytes()
    shutil.rmtree(run / "networks" / "planted")
    assert cli.main(["plant", "--resume", str(run), "--report", "--threads", "1"]) == 0
    assert "Networks (test part read once, now)" in capsys.readouterr().out
    assert (run / "networks" / "planted" / "structure.json").read_bytes() == structure
    assert (run / "report.html").exists()
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert sorted(os.listdir(run / "checkpoints")) == checkpoints
    assert "has ended already" in one_line(["plant", "--resume", str(run), "--report"], capsys)


def test_an_edited_configuration_is_not_resumed(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("copy")
    shutil.copytree(planted, run)
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"epochs": 1', '"epochs": 2'))
    assert "is not the one that made the checkpoint" in one_line(["plant", "--resume", str(run)], capsys)


def test_resume_of_the_wrong_thing(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has ended already" in one_line(["plant", "--resume", str(planted)], capsys)
    assert f"go on with plantops plant --resume {planted}" in one_line(["train", "--resume", str(planted)], capsys)


def test_a_training_that_diverges_stops_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["teacher", "--data", "digits", "--epochs", "5", "--lr", "1e9", "--threads", "1", "--out", "hot"]
    assert cli.main([*arguments, "--progress", "none"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("plantops teacher: teacher: the training diverged, its loss in epoch 1 of 5 is nan")
    assert line.endswith("Begin a run with a lower one.")


def test_a_search_outlives_a_training_that_it_can_do_without(capsys: pytest.CaptureFixture[str]) -> None:
    hot = ["--uniform", "3", "--uniform-lr", "1e9", "--finetune-epochs", "3", "--finetune-lr", "1e9"]
    assert cli.main(["plant", *QUICK, *SHORT, *hot, "--out", "hot"]) == 0
    networks = {record["name"]: record for record in read_run("hot").of("network")}
    assert networks["uniform-3"]["test_loss"] is None
    assert networks["planted"]["test_loss"] < 3
    assert "finetuned" not in networks
    trained = [(r["name"], r["epoch"]) for r in read_run("hot").of("epoch") if r["phase"] in ("finetune", "uniform")]
    assert trained == [("finetune", 1), ("uniform-3", 1)]  # no further than the epoch that diverged


class TwoProcesses:
    """What process ``rank`` of two sees, if it is told by itself what the first one says."""

    def __init__(self, rank: int, said: Any = None) -> None:
        self.rank, self.size, self._said = rank, 2, said

    def json(self, value: Any, owner: int) -> Any:
        return value if self.rank == owner else self._said


def begun_by_two(arguments: list[str], rank: int, monkeypatch: pytest.MonkeyPatch, said: Any = None) -> Any:
    monkeypatch.setattr(running, "ranks_of_environment", lambda: TwoProcesses(rank, said))
    with running.opened(PlantOptions, "plant", arguments) as (options, run):
        return options, run


@pytest.mark.parametrize("left", [None, [], [".lock", ".config.json.tmp-4711"]], ids=["absent", "empty", "half"])
def test_two_processes_take_the_folders_that_one_takes(left: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if left is not None:
        Path("run").mkdir()
        for name in left:
            (Path("run") / name).write_text("{")
    arguments = ["--epochs", "3", "--out", "run"]
    for rank in (0, 1):
        options, run = begun_by_two(arguments, rank, monkeypatch, said=False)
        assert (options.epochs, run) == (3, None)
    running.create_run(options, "plant", "digits").close()


def test_two_processes_drop_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse.resolve(PlantOptions, "plant", ["--lr", "0.05", "--out", "run"])
    running.create_run(options, "plant", "digits").close()
    again = ["--lr", "0.05", "--progress", "none", "--no-report", "--out", "run"]
    for rank in (0, 1):
        options, run = begun_by_two(again, rank, monkeypatch, said=True)
        assert (options.lr, options.progress, options.report) == (0.05, "none", False)
        assert (run is None) == (rank == 1)
    for flag, text in (("--lr", "--lr 0.05, and 0.5 is asked for"), ("--seed", "--seed 0, and 5 is asked for")):
        with pytest.raises(Mistake, match=f"run holds a run with {text}: give the run's own"):
            begun_by_two([flag, "0.5" if flag == "--lr" else "5", "--out", "run"], 0, monkeypatch)


def test_resume_takes_no_other_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Mistake, match="leave out --lr"):
        parse.resolve_again(PlantOptions, "plant", {"command": "plant"}, ["--lr", "0.5"])
    assert parse.resolve_again(PlantOptions, "plant", {"epochs": 3}, ["--no-report"]).report is False


@pytest.mark.parametrize("file", ["weights.safetensors", "structure.json", "state.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_refused(file: str, planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("copy")
    subprocess.run(["cp", "-r", str(planted), str(run)], check=True)
    for folder in (run / "checkpoints").iterdir():
        content = bytearray((folder / file).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / file).write_bytes(bytes(content))
    line = one_line(["plant", "--resume", str(run)], capsys)
    assert file in line
    assert "damaged" in line


def test_a_foreign_checkpoint_is_refused(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("copy")
    subprocess.run(["cp", "-r", str(planted), str(run)], check=True)
    for folder in (run / "checkpoints").iterdir():
        (folder / "manifest.json").write_text('{"format": "another program"}')
    assert "not written by plantops" in one_line(["plant", "--resume", str(run)], capsys)


def test_a_teacher_of_other_data(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plant", *QUICK, "--teacher", str(planted), "--image-size", "16"]
    line = one_line(arguments, capsys)
    assert "was trained on digits (10 classes, images [1, 8, 8])" in line
    assert "images [1, 16, 16]" in line


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "The disk is full"), (errno.EACCES, "Permission denied")],
)
def test_a_disk_that_does_not_take_it(
    number: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "write_synced", refuse)
    assert text in one_line(["plant", *QUICK, "--out", "run"], capsys)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"lrr": 1}', "'lrr' is no option"),
        ('{"lr": "x"}', "config.json: lr must be a number, got 'x'"),
        ('{"lr": Infinity}', "config.json: lr must be a finite number, got inf"),
        ('{"seed": -1}', "config.json: seed must be at least 0, got -1"),
        ('{"epochs": true}', "epochs must be a whole number, got True"),
        ('{"max_rounds": "no"}', "max_rounds must be a whole number or None, got 'no'"),
        ('{"objective": ["kl"]}', "objective must be one of kl, kd, ce, adversarial, got ['kl']"),
        ("[" * 500 + "]" * 500, "nested more than 100 levels deep"),
    ],
)
def test_a_config_file_that_does_not_fit(content: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.json").write_text(content)
    assert text in one_line(["plant", "--config", "config.json"], capsys)
