import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from plantops.train import DataError, load
from plantops.train.sources import cifar, stl10
from plantops.train.sources.base import find_folder


def test_real_cifar10(cifar10_root):
    parts = load("cifar10", cifar10_root, seed=0)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (45_000, 5_000, 10_000)
    assert parts.train.shape == (3, 32, 32)
    assert parts.train.class_names[:2] == ("airplane", "automobile")
    assert parts.val.labels.bincount().tolist() == [500] * 10
    assert parts.test.labels.bincount().tolist() == [1000] * 10
    # the widely quoted statistics of the 50,000 training images, to the held-out tenth
    expected_mean, expected_std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    assert (parts.train.mean / 255).tolist() == pytest.approx(expected_mean, abs=1e-3)
    assert (parts.train.std / 255).tolist() == pytest.approx(expected_std, abs=1e-3)
    # the first test image is a cat: label and the pixels of its first row against the file, read without our reader
    stored = np.fromfile(cifar10_root / "cifar-10-batches-py" / "test_batch", np.uint8)
    row = parts.test.images[0, 0, 0].numpy().tobytes()
    assert row in stored.tobytes()
    assert parts.test.class_names[int(parts.test.labels[0])] == "cat"
    # the folder itself is accepted as root
    folder = cifar10_root / "cifar-10-batches-py"
    assert find_folder("cifar-10-batches-py", folder, "data_batch_1") == folder


def test_changed_cifar_file_is_refused(cifar10_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(cifar10_root / "cifar-10-batches-py", folder)
    data = bytearray((folder / "data_batch_3").read_bytes())
    data[1_000_000] ^= 1
    (folder / "data_batch_3").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"data_batch_3: MD5 \w+ differs from the published 54ebc095.*Unpack"):
        load("cifar10", tmp_path)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_no_pickle_runs_code(tmp_path):
    """Neither one whose MD5 is wrong, nor one whose MD5 were right."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    marker = tmp_path / "ran"
    data = pickle.dumps({b"data": Bomb(marker)}, protocol=4)
    for name in cifar.CIFAR10.md5:
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match="MD5"):
        load("cifar10", tmp_path)
    trusted = replace(cifar.CIFAR10, md5=dict.fromkeys(cifar.CIFAR10.md5, hashlib.md5(data).hexdigest()))
    with pytest.raises(DataError, match=r"posix\.mkdir"):
        cifar.read_cifar(trusted, tmp_path)
    assert not marker.exists()


def test_small_files_of_the_cifar100_layout(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.arange(4 * 3072, dtype=np.int64).astype(np.uint8).reshape(4, 3072)
    content = {b"data": pixels, b"fine_labels": [99, 0, 5, 7], b"coarse_labels": [1, 2, 3, 4]}
    files = {
        "train": pickle.dumps(content, protocol=4),
        "test": pickle.dumps({**content, b"fine_labels": [1, 2, 3, 4]}, protocol=4),
        "meta": pickle.dumps({b"fine_label_names": [b"class%d" % number for number in range(100)]}, protocol=4),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    release = replace(cifar.CIFAR100, md5={name: hashlib.md5(data).hexdigest() for name, data in files.items()})
    raw = cifar.read_cifar(release, tmp_path)
    assert np.array_equal(raw.train.images.numpy(), pixels.reshape(4, 3, 32, 32))
    assert raw.train.labels.tolist() == [99, 0, 5, 7]
    assert raw.test.labels.tolist() == [1, 2, 3, 4]
    assert raw.class_names[99] == "class99"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        ("cifar100", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
        ("stl10", "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"),
    ],
)
def test_a_missing_set_says_what_to_do(name, address, tmp_path):
    with pytest.raises(DataError) as caught:
        load(name, tmp_path / "nowhere")
    text = str(caught.value)
    for part in (address, "tar -xzf", f"--data-root {tmp_path / 'nowhere'}", "--download", str(tmp_path / "nowhere")):
        assert part in text


def test_the_environment_names_a_place(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTOPS_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="elsewhere"):
        load("cifar10")


def stl10_files(folder, count):
    rng = np.random.default_rng(0)
    upright = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
    files = {
        "X": upright.transpose(0, 1, 3, 2).tobytes(),  # the published order is column by column
        "y": (np.arange(count, dtype=np.uint8) % 10 + 1).tobytes(),
    }
    return upright, files


def test_stl10_layout(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(f"thing{number}" for number in range(10)) + "\n")
    upright = {}
    for part, count in (("train", 40), ("test", 20)):
        upright[part], files = stl10_files(folder, count)
        for kind, data in files.items():
            (folder / f"{part}_{kind}.bin").write_bytes(data)
            monkeypatch.setitem(stl10.MD5, f"{part}_{kind}.bin", hashlib.md5(data).hexdigest())
    parts = load("stl10", tmp_path, val_fraction=0.25)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (30, 10, 20)
    assert np.array_equal(parts.test.images.numpy(), upright["test"])
    assert parts.test.labels.tolist() == [*range(10), *range(10)]
    assert parts.train.class_names[9] == "thing9"
    (folder / "test_y.bin").write_bytes(b"\x01" * 20)
    with pytest.raises(DataError, match=r"test_y\.bin: MD5"):
        load("stl10", tmp_path)


@pytest.fixture
def pictures(tmp_path):
    """Two classes, in parts; returns the pixels by (part, class, file)."""
    image_module = pytest.importorskip("PIL.Image", reason="folder:PATH needs Pillow")
    rng = np.random.default_rng(3)
    stored = {}
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
                image_module.fromarray(pixels).save(folder / f"{number}.png")
                stored[part, name, number] = pixels
    return tmp_path, stored


def test_folder_with_parts(pictures):
    root, stored = pictures
    parts = load(f"folder:{root}", val_fraction=0.34)
    assert parts.train.class_names == ("cat", "dog")
    assert (len(parts.train), len(parts.val), len(parts.test)) == (8, 4, 4)
    expected = [stored["test", name, number].transpose(2, 0, 1) for name in ("cat", "dog") for number in (0, 1)]
    assert np.array_equal(parts.test.images.numpy(), np.stack(expected))
    assert parts.test.labels.tolist() == [0, 0, 1, 1]


def test_folder_without_parts_and_resized(pictures):
    root, _ = pictures
    shutil.rmtree(root / "test")
    parts = load(f"folder:{root / 'train'}", image_size=4)
    assert parts.train.shape == (3, 4, 4)
    assert (len(parts.train) + len(parts.val), len(parts.test)) == (10, 2)
    assert parts.test.labels.tolist() == [0, 1]


def test_folder_of_grey_pictures(tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="folder:PATH needs Pillow")
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            image_module.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    parts = load(f"folder:{tmp_path}", val_fraction=0.3)
    assert parts.train.shape == (1, 4, 5)
    assert np.array_equal(parts.train.images[0, 0].numpy(), pixels)


def test_folder_mistakes(pictures, tmp_path):
    root, _ = pictures
    image_module = pytest.importorskip("PIL.Image", reason="folder:PATH needs Pillow")
    with pytest.raises(DataError, match=r"there is no folder"):
        load(f"folder:{root / 'absent'}")
    with pytest.raises(DataError, match=r"found 0 class folders, expected 2"):
        load(f"folder:{root / 'train' / 'cat'}")
    (root / "test" / "horse").mkdir()
    with pytest.raises(DataError, match=r"class folder 'horse' has no training pictures"):
        load(f"folder:{root}")
    (root / "test" / "horse").rmdir()
    odd = root / "train" / "cat" / "odd.png"
    image_module.fromarray(np.zeros((6, 7, 3), np.uint8)).save(odd)
    with pytest.raises(DataError, match=r"odd\.png is 6x7 pixels.*5x7\. Pass --image-size"):
        load(f"folder:{root}")
    odd.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"odd\.png: not a picture"):
        load(f"folder:{root}")
    image_module.fromarray(np.zeros((5, 7), np.uint16)).save(odd)
    with pytest.raises(DataError, match=r"odd\.png: .*more than 8 bits"):
        load(f"folder:{root}")


def test_no_extra_is_imported_before_it_is_needed():
    code = (
        "import sys, plantops.train; "
        "names = ('sklearn', 'PIL', 'torchvision', 'rich', 'matplotlib', 'tensorboard'); "
        "found = [name for name in names if name in sys.modules]; "
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "module", "extra"), [("digits", "sklearn", "data"), ("folder:.", "PIL", "vision")])
def test_a_missing_extra_says_how_to_get_it(name, module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.datasets", None)
    if name == "folder:.":
        for label in ("a", "b"):
            (tmp_path / label).mkdir()
            (tmp_path / label / "x.png").touch()
        name = f"folder:{tmp_path}"
    with pytest.raises(DataError, match=rf"pip install 'plantops\[{extra}\]'"):
        load(name)
