"""Files that anyone may have written, in the place of a run's: each reader says in one sentence what is wrong."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from plantops.planting.experiment import Family, data_facts
from plantops.planting.networks import find_network, save_network
from plantops.train import CheckpointError, DataError, ImageData, Run, RunError, load, read_run
from plantops.train.checkpoint import load_checkpoint
from plantops.train.files import DEEPEST, atomic_write_text, parse_json, read_regular
from plantops.train.session import Session
from plantops.train.sources import folder as pictures


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "Traceback" not in text
    assert len(text) < 900
    return text


# Whole files: of another kind, or with odd content


def of_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def pipe(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


ODD_FILES = {
    "deep": of_bytes(b"[" * 200_000 + b"]" * 200_000),
    "deep object": of_bytes(b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "a little too deep": of_bytes(b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1)),
    "half": of_bytes(b'{"format": "plantops-'),
    "empty": of_bytes(b""),
    "zeros": of_bytes(b"\0" * 64),
    "not UTF-8": of_bytes(b'{"format": "\xff\xfe"}'),
    "a long number": of_bytes(b'{"version": ' + b"9" * 10_000 + b"}"),
    "a list": of_bytes(b"[1]"),
    "null": of_bytes(b"null"),
    "lone surrogate": of_bytes(b'{"format": "\\ud800"}'),
    "a folder": lambda path: path.mkdir(),
    "a named pipe": pipe,
    "a dangling link": dangling,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped in the middle of a training, with a network in it."""
    path = tmp_path / "run"
    with Run.create(path, {"data": "digits", "lr": 0.1}) as run:
        run.log("round", round=0)
        session = Session(run)
        session.once("score", lambda: {"loss": 0.5, "accuracy": 0.25})
        session.checkpoint()
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    data = ImageData(images, torch.tensor([0, 1]), torch.zeros(1), torch.ones(1), 2, "tiny/train")
    network = Family(2, 1, 8).build([1, 2, 1, 2, 1], 0, "initial")
    save_network(path / "networks" / "initial", network, name="initial", role="initial", data=data_facts(data))
    return path


def take_up(run: Path) -> None:
    with Run.open(run) as opened:
        Session(opened)


def ask_for_the_end(run: Path) -> None:
    with Run.open(run) as opened:
        Session.ended(opened)


READERS = {
    "config.json": (read_run, Run.open),
    "metrics.jsonl": (read_run,),
    "checkpoints/000001/manifest.json": (take_up,),
    "checkpoints/000001/structure.json": (take_up,),
    "checkpoints/000001/weights.safetensors": (take_up,),
    "checkpoints/000001/state.pt": (take_up,),
    "networks/initial/structure.json": (find_network,),
    "networks/initial/model.safetensors": (lambda run: find_network(run).build(),),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("odd", ODD_FILES)
@pytest.mark.parametrize("name", READERS)
def test_an_odd_file_in_the_place_of_a_run_s(name: str, odd: str, run: Path) -> None:
    place = run / name
    place.unlink()
    ODD_FILES[odd](place)
    if name == "metrics.jsonl" and odd in ("empty", "half", "zeros"):
        assert read_run(run).metrics == []  # a line without its end is one that was being written
        return
    if name == "metrics.jsonl" and place.is_file() and not place.is_symlink():
        place.write_bytes(place.read_bytes() + b"\n")
    for reader in READERS[name]:
        with pytest.raises(RunError) as caught:
            reader(run)
        assert place.parent.name in one_sentence(caught.value)


def test_no_reader_follows_a_link_to_write(run: Path, tmp_path: Path) -> None:
    """What a run writes in place must not cut another file short."""
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    for name in (".lock", "metrics.jsonl"):
        (run / name).unlink()
        (run / name).symlink_to(precious)
        with pytest.raises(RunError, match="Symbolic links are not followed"):
            take_up(run)
        assert precious.read_text() == "years of work"
        (run / name).unlink()
        (run / name).touch()


def test_depth_is_counted() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, "here")
    with pytest.raises(RunError, match=rf"^here: damaged, it is nested more than {DEEPEST} levels deep\.$"):
        parse_json('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "here")


def test_what_is_read_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder"), (Path("/dev/null"), "a device")):
        with pytest.raises(RunError, match=f"not a regular file but {kind}"):
            read_regular(path)


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "text", "a\ud800b")
    assert (tmp_path / "text").read_text() == "a\\ud800b"


# Checkpoints with a right checksum over odd content


def with_structure(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    folder = run / "checkpoints" / "000001"
    structure = json.loads((folder / "structure.json").read_text())
    changed = change(structure)
    content = json.dumps(structure if changed is None else changed).encode()
    sign(folder, "structure.json", content)


def sign(folder: Path, name: str, content: bytes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / name).write_bytes(content)
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


ODD_VALUES = (None, True, -1, 1.5, 10**30, "x", [], [1], {}, {"a": 1})
UNDER_WAY = {"keys": ["a"], "epoch": 1, "records": 0, "seconds": [0.5]}


def set_at(*path: str) -> Callable[[dict[str, Any], Any], None]:
    def put(structure: dict[str, Any], value: Any) -> None:
        structure["under_way"] = structure["under_way"] or json.loads(json.dumps(UNDER_WAY))
        for name in path[:-1]:
            structure = structure[name]
        structure[path[-1]] = value

    return put


FINE = {
    ("under_way",): ("None",),
    ("under_way", "seconds"): ("[1]",),
    ("finished",): ("{}",),
    ("finished", "score", "result"): ("{}", "{'a': 1}"),
    ("finished", "score", "tensors"): ("[]",),
    ("finished", "score", "result", "loss"): ("None", "-1", "1.5", str(10**30)),
}
"""Values that are as a session may write them: nothing is said of these when the run is taken up."""


@pytest.mark.parametrize(
    "path",
    [
        ("format",),
        ("records",),
        ("metrics_bytes",),
        ("finished",),
        ("finished", "score"),
        ("finished", "score", "result"),
        ("finished", "score", "result", "loss"),
        ("finished", "score", "records"),
        ("finished", "score", "epochs"),
        ("finished", "score", "tensors"),
        ("under_way",),
        ("under_way", "keys"),
        ("under_way", "epoch"),
        ("under_way", "records"),
        ("under_way", "seconds"),
    ],
    ids="/".join,
)
def test_odd_content_under_a_right_checksum(path: tuple[str, ...], run: Path) -> None:
    original = (run / "checkpoints" / "000001" / "structure.json").read_bytes()
    for value in ODD_VALUES:
        sign(run / "checkpoints" / "000001", "structure.json", original)
        with_structure(run, lambda structure, value=value: set_at(*path)(structure, value))
        if repr(value) in FINE.get(path, ()):
            take_up(run)
            continue
        with pytest.raises(CheckpointError) as caught:
            take_up(run)
        assert "000001" in one_sentence(caught.value)


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
def test_odd_files_of_a_checkpoint_as_a_whole(value: Any, run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "000001"
    for name in ("structure.json", "state.pt"):
        again = tmp_path / name / folder.name
        shutil.copytree(folder, again)
        if name == "state.pt":
            torch.save(value, tmp_path / "saved")
            content = (tmp_path / "saved").read_bytes()
        else:
            content = json.dumps(value).encode()
        sign(again, name, content)
        if isinstance(value, dict):
            load_checkpoint(again)
            continue
        with pytest.raises(CheckpointError, match=f"{name}: must hold names and values"):
            load_checkpoint(again)


def test_a_result_without_a_name_that_is_asked_for(run: Path) -> None:
    with_structure(run, lambda structure: structure["finished"]["score"].update(result={"loss": 1.0}))
    with Run.open(run) as opened:
        result = Session(opened).once("score", dict)
        assert result["loss"] == 1.0
        with pytest.raises(CheckpointError, match="score has no 'accuracy'"):
            result["accuracy"]


def test_tensors_of_finished_work_that_are_gone(run: Path) -> None:
    with_structure(run, lambda structure: structure["finished"]["score"].update(tensors=["weight"]))
    with pytest.raises(CheckpointError, match="the tensors of score are not the 1 named"):
        take_up(run)


# A checkpoint belongs to a configuration


def test_an_edited_configuration_is_refused(run: Path) -> None:
    take_up(run)
    config = json.loads((run / "config.json").read_text())
    reordered = {**config, "config": dict(reversed(config["config"].items()))}
    (run / "config.json").write_text(json.dumps(reordered))
    take_up(run)
    config["config"]["lr"] = 0.2
    (run / "config.json").write_text(json.dumps(config))
    for look in (take_up, ask_for_the_end):
        with pytest.raises(RunError, match=r"is not the one that made the checkpoint 000001 .*Restore config\.json"):
            look(run)
    with_structure(run, lambda structure: structure.pop("config_sha256") and None)
    take_up(run)  # of a version that did not store it


# Networks


@pytest.mark.parametrize("name", ["name", "role", "arguments", "data", "sha256"])
@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
def test_an_odd_description_of_a_network(name: str, value: Any, run: Path) -> None:
    path = run / "networks" / "initial" / "structure.json"
    structure = json.loads(path.read_text())
    structure[name] = value
    path.write_text(json.dumps(structure))
    if name == "name" and value == "x":
        find_network(run).build()
        return
    with pytest.raises(RunError) as caught:
        find_network(run).build()
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("widths", [[10**9] * 5, [1, 2, 1, 2], [1, 2, 1, 2, 2], ["1"] * 5, -1, None]),
        ("num_classes", [0, -3, 10**12, "2", None]),
        ("image_size", [7, 10**9, "8", None, -8]),
        ("model", [3, [], "no:such"]),
        ("pool_after", [[9], "x", 3]),
    ],
)
def test_odd_arguments_ask_for_no_memory(place: str, values: list[Any], run: Path) -> None:
    path = run / "networks" / "initial" / "structure.json"
    for value in values:
        structure = json.loads(path.read_text())
        structure["arguments"][place] = value
        path.write_text(json.dumps(structure))
        with pytest.raises(RunError) as caught:
            find_network(run).build()
        one_sentence(caught.value)


def test_weights_of_another_kind(run: Path) -> None:
    folder = run / "networks" / "initial"
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    content = safetensors.torch.save({name: tensor.double() for name, tensor in tensors.items()})
    structure = json.loads((folder / "structure.json").read_text())
    structure["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "model.safetensors").write_bytes(content)
    (folder / "structure.json").write_text(json.dumps(structure))
    with pytest.raises(RunError, match=r"conv1\.bias must be .*float32.*, got .*float64"):
        find_network(run).build()


# Pictures


@pytest.fixture
def root(tmp_path: Path) -> Path:
    image_module = pytest.importorskip("PIL.Image", reason="folder:PATH needs Pillow")
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((5, 7, 3), 40 * number, np.uint8)
            image_module.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def put(place: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda root: make(root / place)


def linked_out(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(path.parent / "0.png", elsewhere / "0.png")
    path.symlink_to(elsewhere / "0.png")


def linked_folder(path: Path) -> None:
    elsewhere = path.parents[1] / "elsewhere"
    shutil.copytree(path.parent / "cat", elsewhere)
    path.symlink_to(elsewhere, target_is_directory=True)


def cut_short(path: Path) -> None:
    path.write_bytes((path.parent / "0.png").read_bytes()[:45])


ODD_PICTURES = {
    "a named pipe": (put("cat/odd.png", pipe), "odd.png: not a regular file but a named pipe"),
    "a dangling link": (put("cat/odd.png", dangling), "odd.png: No such file"),
    "a link out": (put("cat/odd.png", linked_out), "odd.png: a symbolic link out of"),
    "a class linked out": (put("bird", linked_folder), "a symbolic link out of"),
    "empty": (put("cat/odd.png", of_bytes(b"")), "odd.png: not a picture that Pillow can read (of no known kind)"),
    "text": (put("cat/odd.gif", of_bytes(b"GIF89a")), "odd.gif: "),
    "cut short": (put("cat/odd.png", cut_short), "odd.png: "),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("odd", ODD_PICTURES)
def test_an_odd_picture(odd: str, root: Path) -> None:
    make, text = ODD_PICTURES[odd]
    make(root)
    with pytest.raises(DataError) as caught:
        load(f"folder:{root}")
    assert text in one_sentence(caught.value)


def test_links_inside_the_folder_and_folders_named_like_pictures(root: Path) -> None:
    (root / "cat" / "again.png").symlink_to(root / "cat" / "0.png")
    (root / "cat" / "old.png").mkdir()
    parts = load(f"folder:{root}", val_fraction=0.3)
    assert len(parts.train) + len(parts.val) + len(parts.test) == 11


def test_a_picture_of_more_pixels_than_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With lowered limits, Pillow's own and ours: the pictures are small."""
    from PIL import Image

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "MOST_PIXELS", 34)
        with pytest.raises(DataError, match=r"0\.png: 5x7 pixels, more than the 34 that are read\. Shrink or remove"):
            load(f"folder:{root}")
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
        with pytest.raises(DataError, match=r"0\.png: too many pixels, more than the 34 that are read"):
            load(f"folder:{root}")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 35)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow only warns of 35
    load(f"folder:{root}", val_fraction=0.3)
