import errno
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from plantops.train import CheckpointError, CheckpointStore, RunError
from plantops.train import checkpoint as checkpoint_module
from plantops.train import files as files_module
from plantops.train.checkpoint import atomic_write_bytes, atomic_write_text


def trained(optimizer_class, **options):
    """A network and an optimizer after two steps, so that the optimizer has a state."""
    torch_generator = torch.Generator().manual_seed(0)
    network = torch.nn.Linear(3, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_generator))
    optimizer = optimizer_class(network.parameters(), lr=0.1, **options)
    for _ in range(2):
        step(network, optimizer)
    return network, optimizer


def step(network, optimizer):
    optimizer.zero_grad()
    network(torch.linspace(-1, 1, 6).view(2, 3)).square().sum().backward()
    optimizer.step()


def small(value):
    """Arguments of ``save`` whose every part carries ``value``."""
    return {"w": torch.full((3,), float(value))}, {"value": value}, {"value": value, "r": torch.tensor(value)}


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.RMSprop, {"momentum": 0.9}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_going_on_from_a_checkpoint_gives_the_same_bits(tmp_path, optimizer_class, options):
    network, optimizer = trained(optimizer_class, **options)
    random_state = torch.Generator().manual_seed(7).get_state()
    state = {"optimizer": optimizer.state_dict(), "epoch": 3, "rng": random_state, "best": None, "names": ("a", [1.5])}
    CheckpointStore(tmp_path).save(3, network.state_dict(), {"widths": [3, 4]}, state)
    loaded = CheckpointStore(tmp_path).latest()
    assert (loaded.step, loaded.structure, loaded.warning) == (3, {"widths": [3, 4]}, None)
    assert (loaded.state["epoch"], loaded.state["best"], loaded.state["names"]) == (3, None, ("a", [1.5]))
    assert torch.equal(loaded.state["rng"], random_state)
    again, again_optimizer = trained(optimizer_class, **options)
    with torch.no_grad():
        again.weight.zero_()
    again.load_state_dict(loaded.tensors)
    again_optimizer.load_state_dict(loaded.state["optimizer"])
    for _ in range(5):
        step(network, optimizer)
        step(again, again_optimizer)
    assert torch.equal(network.weight, again.weight)
    assert torch.equal(network.bias, again.bias)


def test_special_tensors_come_back(tmp_path):
    base = torch.arange(12, dtype=torch.float64).view(3, 4)
    tensors = {
        "transposed": base.t(),
        "view": base[:, 1],
        "shared": base,
        "half": torch.tensor([1.5, float("nan"), float("inf")], dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    store = CheckpointStore(tmp_path)
    store.save(0, tensors, {}, {})
    loaded = store.latest().tensors
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].nan_to_num(), tensor.nan_to_num()), name


def test_the_last_two_are_kept(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    for value in (1, 2, 5, 1_000_000):
        store.save(value, *small(value))
        assert store.latest().structure == {"value": value}
    assert store.steps() == [5, 1_000_000]
    assert sorted(os.listdir(tmp_path)) == ["000005", "1000000"]


def test_steps_must_grow(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(4, *small(4))
    for step_number in (4, 3):
        with pytest.raises(ValueError, match=f"newest checkpoint's 4, got {step_number}"):
            store.save(step_number, *small(0))
    with pytest.raises(ValueError, match="newest checkpoint's 4, got 4"):
        CheckpointStore(tmp_path).save(4, *small(0))


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] must be tensors.*got Random"):
        store.save(0, {}, {}, {"a": [1, random.Random()]})
    with pytest.raises(TypeError, match=r"state: keys must be str or int, got float: 1\.5"):
        store.save(0, {}, {}, {1.5: 0})
    assert store.latest() is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def edit_manifest(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "weights flipped": (lambda p: flip(p / "weights.safetensors"), r"weights\.safetensors: damaged, its SHA-256"),
    "state flipped": (lambda p: flip(p / "state.pt"), r"state\.pt: damaged, its SHA-256"),
    "structure cut": (lambda p: truncate(p / "structure.json"), r"structure\.json: damaged, \d+ bytes instead of \d+"),
    "state missing": (lambda p: (p / "state.pt").unlink(), r"state\.pt: No such file"),
    "manifest missing": (lambda p: (p / "manifest.json").unlink(), r"manifest\.json: missing"),
    "manifest cut": (lambda p: truncate(p / "manifest.json") or truncate(p / "manifest.json"), "not JSON"),
    "manifest not text": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "foreign": (lambda p: (p / "manifest.json").write_text('{"format": "other"}'), "not written by plantops"),
    "a list": (lambda p: (p / "manifest.json").write_text("[]"), "not written by plantops"),
    "newer": (lambda p: edit_manifest(p / "manifest.json", version=2), "version 2, this plantops reads 1"),
    "no files": (lambda p: edit_manifest(p / "manifest.json", files={}), r"no entry for weights\.safetensors"),
    "other step": (lambda p: edit_manifest(p / "manifest.json", step=7), "of step 7"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_and_the_one_before_is_offered(tmp_path, kind):
    damage, reason = DAMAGE[kind]
    store = CheckpointStore(tmp_path)
    store.save(1, *small(1))
    store.save(2, *small(2))
    damage(tmp_path / "000002")
    loaded = CheckpointStore(tmp_path).latest()
    assert (loaded.step, loaded.state["value"], loaded.tensors["w"].tolist()) == (1, 1, [1.0] * 3)
    assert loaded.warning is not None
    assert "000001" in loaded.warning
    with pytest.raises(CheckpointError, match=reason):
        checkpoint_module.load_checkpoint(tmp_path / "000002")
    damage(tmp_path / "000001")
    with pytest.raises(CheckpointError, match=r"000001.*start a new run"):
        CheckpointStore(tmp_path).latest()


def test_a_damaged_step_is_written_again(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, *small(1))
    store.save(2, *small(2))
    flip(tmp_path / "000002" / "state.pt")
    resumed = CheckpointStore(tmp_path)
    assert resumed.latest().step == 1
    resumed.save(2, *small(22))
    loaded = CheckpointStore(tmp_path).latest()
    assert (loaded.step, loaded.state["value"], loaded.warning) == (2, 22, None)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_with_matching_sums_runs_nothing(tmp_path, zipped):
    """Whoever can write the manifest too still cannot run code."""
    store = CheckpointStore(tmp_path / "c")
    store.save(0, *small(0))
    marker = tmp_path / "ran"
    if zipped:
        buffer = io.BytesIO()
        torch.save({"x": Bomb(marker)}, buffer)
        data = buffer.getvalue()
    else:
        data = pickle.dumps({"x": Bomb(marker)}, protocol=2)
    folder = tmp_path / "c" / "000000"
    (folder / "state.pt").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.pt"] = {"sha256": checkpoint_module._sha256(data), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        store.latest()
    assert not marker.exists()


def full_disk(monkeypatch, after):
    """Every write fails with ENOSPC once ``after`` files have been written."""
    real, count = files_module.write_synced, [0]

    def write(path, data):
        count[0] += 1
        if count[0] > after:
            path.write_bytes(data[: len(data) // 2])  # a full disk leaves part of the file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    monkeypatch.setattr(files_module, "write_synced", write)
    monkeypatch.setattr(checkpoint_module, "write_synced", write)


@pytest.mark.parametrize("after", range(4))
def test_a_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch, after):
    store = CheckpointStore(tmp_path)
    store.save(1, *small(1))
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        with pytest.raises(RunError, match=r"000002: No space left on device\. The disk is full: free some space"):
            store.save(2, *small(2))
    assert os.listdir(tmp_path) == ["000001"]
    assert store.latest().state["value"] == 1
    store.save(2, *small(2))  # once there is space again, the same store goes on
    assert store.latest().state["value"] == 2


def test_no_permission_is_explained(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RunError, match="Permission denied: use a folder that you may write to"):
        CheckpointStore(tmp_path).save(0, *small(0))
    assert os.listdir(tmp_path) == []


def test_atomic_write(tmp_path, monkeypatch):
    target = tmp_path / "file.txt"
    atomic_write_text(target, "grün\n")
    assert target.read_bytes() == "grün\n".encode()
    with monkeypatch.context() as patch:
        full_disk(patch, 0)
        with pytest.raises(RunError, match=r"file\.txt: No space left"):
            atomic_write_bytes(target, b"other")
    assert target.read_text() == "grün\n"
    assert os.listdir(tmp_path) == ["file.txt"]
    with pytest.raises(RunError, match="No such file or directory"):
        atomic_write_bytes(tmp_path / "absent" / "file", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_really_full_device():
    with pytest.raises(OSError, match="No space left"):
        files_module.write_synced(Path("/dev/full"), b"x")


LAUNCHER = """
import os, sys, torch
from plantops.train import CheckpointStore
torch.set_num_threads(1)

def write_for_ever(folder):
    store = CheckpointStore(folder)
    loaded = store.latest()
    assert loaded is None or loaded.warning is None
    step = 0 if loaded is None else loaded.step + 1
    while True:
        tensors = {"w": torch.full((200_000,), float(step))}
        store.save(step, tensors, {"value": step}, {"value": step, "r": torch.full((50_000,), step)})
        step += 1

for _ in sys.stdin:
    writer = os.fork()
    if writer == 0:
        write_for_ever(sys.argv[1])
    print(writer, flush=True)
    os.waitpid(writer, 0)
    print("ended", flush=True)
"""


def test_sigkill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    chance = random.Random(0)
    last = -1
    half_written = 0
    longest = 0.1  # seconds until a kill; more where a save takes longer
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with launcher:
        for _ in range(30):
            launcher.stdin.write("\n")
            launcher.stdin.flush()
            writer = int(launcher.stdout.readline())
            time.sleep(chance.uniform(longest / 10, longest))
            os.kill(writer, signal.SIGKILL)
            assert launcher.stdout.readline() == "ended\n"
            half_written += any(".tmp-" in name for name in os.listdir(tmp_path))
            loaded = CheckpointStore(tmp_path).latest()
            if loaded is None:
                assert last == -1
                longest = min(2 * longest, 10)
                continue
            assert loaded.warning is None  # neither damaged nor half written: whole
            assert loaded.step >= last
            assert loaded.structure == {"value": loaded.step}
            assert loaded.state["value"] == loaded.step
            assert (loaded.tensors["w"] == loaded.step).all()
            assert (loaded.state["r"] == loaded.step).all()
            last = loaded.step
        launcher.stdin.close()
    assert last > 0
    assert half_written > 0  # else no kill fell into a save, and nothing was tested
