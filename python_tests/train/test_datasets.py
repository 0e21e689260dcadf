"""Data sets that people have: what is read is what they hold, and what cannot be read is named."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from plantops import PlantopsError
from plantops.train import ImageData, Normalisation, from_dataset
from plantops.train.data import channel_statistics

OWN = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (12, 3, 5, 6), dtype=torch.uint8, generator=OWN)
LABELS = torch.arange(12) % 4
FLOATS = torch.randn(12, 3, 5, 6, generator=OWN)


# Normalisation


def test_floats_stay_and_bytes_are_normalised_unless_the_option_says_otherwise():
    for images, option, changed in (
        (PIXELS, None, True), (FLOATS, None, False), (PIXELS, True, True), (FLOATS, True, True),
        (PIXELS, False, False), (FLOATS, False, False),
    ):  # fmt: skip
        data = from_dataset(TensorDataset(images, LABELS), normalise=option)
        seen = data.normalise(data.images)
        assert seen.dtype == torch.float32
        if not changed:
            assert torch.equal(seen, images.float())
            assert str(data.normalisation) == "images as they are"
            continue
        exact = images.double()
        mean, std = exact.mean((0, 2, 3)), exact.std((0, 2, 3), correction=0)
        torch.testing.assert_close(
            seen.double(), (exact - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), rtol=1e-5, atol=1e-5
        )
        assert str(data.normalisation).startswith("(images - mean) / std, of each channel: mean ")


def test_a_normalisation_takes_one_image_and_many():
    how = Normalisation(*channel_statistics(PIXELS))
    many = how(PIXELS)
    assert torch.equal(how(PIXELS[3]), many[3])
    assert torch.equal(how(PIXELS.float()), many)
    assert torch.equal(how(PIXELS[None]), many[None])
    with pytest.raises(ValueError, match=r"images must be \[..., 3, H, W\], got \[12, 5, 6\]"):
        how(PIXELS[:, 0])


# Random transforms


class Flipping:
    """Half of all readings are mirrored; ``draw``: by which generator."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = PIXELS[index % 12]
        return (image.flip(-1) if self.draw() < 0.5 else image), index % 4


GENERATORS = {
    "torch": (lambda: float(torch.rand(())), torch.get_rng_state),
    "numpy": (lambda: float(np.random.rand()), lambda: np.random.get_state()[1].tolist()),
    "python": (random.random, random.getstate),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_random_transforms_are_noticed(kind: str):
    draw, state = GENERATORS[kind]
    with pytest.warns(UserWarning, match=r"mine: two readings of the same sample differ.*drawn once"):
        from_dataset(Flipping(draw), name="mine")
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from_dataset(Flipping(draw))
    after = state()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    for index in range(201):  # the first sample is read twice, to know its shape
        Flipping(draw)[index]
    assert str(state()) == str(after)  # looking for them draws nothing of the user's own


def test_what_is_always_the_same_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_dataset(TensorDataset(FLOATS, LABELS))
        from_dataset([(PIXELS[0], 0), (PIXELS[1], 1)])


# Labels


@pytest.mark.parametrize(
    "label",
    [2, True, np.int64(2), np.uint8(2), torch.tensor(2), torch.tensor([2]), torch.tensor(2, dtype=torch.uint8),
     np.array([2]), np.array(2, dtype=np.int16)],
    ids=repr,
)  # fmt: skip
def test_whole_numbers_are_labels(label: Any):
    assert from_dataset([(PIXELS[0], label), (PIXELS[1], 0)]).labels.tolist() == [1 if label is True else 2, 0]


@pytest.mark.parametrize(
    "label",
    [1.5, 1.0, np.float64(1.0), torch.tensor(1.5), torch.tensor(1.0), 1 + 0j, None, "cat", b"1", torch.tensor([0, 1]),
     np.array([1, 0, 1]), [0, 1], (1,), {"class": 1}, torch.tensor([]), 10**30, torch.tensor(1 + 1j)],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_no_label(label: Any):
    with pytest.raises(PlantopsError, match=r"mine\[1\]: a label must be one whole number, .*got ") as caught:
        from_dataset([(PIXELS[0], 0), (PIXELS[1], label)], name="mine")
    assert isinstance(caught.value, TypeError)


def test_labels_outside_the_classes_have_the_name_of_their_part():
    for label in (-1, -100, 4):
        with pytest.raises(PlantopsError, match=f"mine: labels must lie in 0 to 3, got .*{label}"):
            from_dataset([(PIXELS[0], 1), (PIXELS[1], label)], num_classes=4, name="mine")


# Images


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "must be a tensor, an array of real numbers or a PIL picture, got NoneType"),
        ("cat.png", "must be a tensor, an array of real numbers or a PIL picture, got str"),
        (["a", "b"], "must be a tensor, an array of real numbers or a PIL picture, got list"),
        (np.zeros((5, 6, 3), complex), "array of real numbers or a PIL picture, got ndarray of complex128"),
        (np.array([None]), "got ndarray of object"),
        (torch.zeros(3, 5, 6, dtype=torch.complex64), "an image must be real, got torch.complex64"),
        (torch.tensor(1.0), r"an image must be \[C, H, W\] or \[H, W\], got \[\]"),
        (3, r"an image must be \[C, H, W\] or \[H, W\], got \[\]"),
        (torch.zeros(1, 3, 5, 6), r"an image must be \[C, H, W\] or \[H, W\], got \[1, 3, 5, 6\]"),
        (torch.zeros(3, 0, 6), r"an image must be \[C, H, W\] or \[H, W\], got \[3, 0, 6\]"),
        (np.zeros((3, 32, 32), np.uint8), r"an array must be \[H, W, C\], got \[3, 32, 32\], which looks"),
        (np.zeros((1, 28, 28), np.float32), r"an array must be \[H, W, C\], got \[1, 28, 28\]"),
        (torch.full((3, 5, 6), torch.nan), "an image must be finite, got a pixel that is nan"),
        (FLOATS[0].index_fill(2, torch.tensor([4]), torch.inf), "an image must be finite, got a pixel that is inf"),
        (np.full((5, 6, 3), 1e300), "an image must be finite, got a pixel that is inf in float32"),
    ],
)  # fmt: skip
def test_an_odd_image_is_named(image: Any, message: str):
    with pytest.raises(PlantopsError, match=rf"mine\[0\]: .*{message}"):
        from_dataset([(image, 0), (image, 1)], name="mine")
    if isinstance(image, Tensor) and image.shape == (3, 5, 6):  # not only the first
        with pytest.raises(PlantopsError, match=r"mine\[1\]: "):
            from_dataset([(FLOATS[0], 0), (image, 1)], name="mine")


def test_arrays_have_their_channels_last():
    for shape in ((5, 6, 3), (3, 6, 3), (1, 1, 1), (3, 4, 4), (28, 28, 1), (7, 9, 2)):
        array = np.random.RandomState(0).rand(*shape)
        data = from_dataset([(array, 0), (array, 1)])
        assert torch.equal(data.images[0], torch.from_numpy(array).permute(2, 0, 1).float())


def test_a_palette_is_no_picture():
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow").fromarray(
        PIXELS[0].permute(1, 2, 0).numpy()
    )
    with pytest.raises(PlantopsError, match=r"palette colours .* image.convert\('RGB'\)"):
        from_dataset([(image.convert("P"), 0)])
    assert torch.equal(from_dataset([(image, 0)]).images, PIXELS[:1])


def test_images_that_require_a_gradient_are_read_without_it():
    assert not from_dataset(TensorDataset(FLOATS.clone().requires_grad_(), LABELS)).images.requires_grad


# Data sets


class Endless(IterableDataset):
    def __iter__(self):
        yield PIXELS[0], 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(TensorDataset(PIXELS, LABELS)), r"got a DataLoader: pass its dataset \(loader.dataset\)"),
        (Endless(), "got Endless; .*TensorDataset"),
        (PIXELS, "got Tensor; .*TensorDataset"),
        (PIXELS.numpy(), "got ndarray"),
        (None, "got NoneType"),
        ("data/train", "got str"),
        ({"train": [(PIXELS[0], 0)]}, "got dict"),
        (iter([(PIXELS[0], 0)]), "got list_iterator"),
        ((PIXELS, LABELS), r"mine\[0\] must be \(image, label\), got Tensor"),
        ([{"image": PIXELS[0], "label": 1}], r"mine\[0\] must be \(image, label\), got dict of image, label"),
        ([(PIXELS[0],)], r"mine\[0\] must be \(image, label\), got tuple"),
    ],
)
def test_what_is_no_data_set_is_named(data: Any, message: str):
    with pytest.raises(PlantopsError, match=message) as caught:
        from_dataset(data, name="mine")
    assert isinstance(caught.value, TypeError)
    assert "mine" in str(caught.value)


def test_an_option_of_another_type_is_named():
    with pytest.raises(TypeError, match="normalise must be True, False or None, got 'yes'"):
        from_dataset(TensorDataset(PIXELS, LABELS), normalise="yes")


# ImageData itself


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("images", None, "images must be a tensor, got NoneType"),
        ("labels", [0, 1], "labels must be a tensor, got list"),
        ("images", torch.full((2, 3, 5, 6), torch.nan), "data must be finite, got nan in a pixel for 2 of 2 images"),
        ("std", torch.zeros(3), "std must be above 0 for every channel, got"),
        ("mean", torch.full((3,), torch.nan), "mean must be finite numbers"),
        ("num_classes", 2.5, "num_classes must be an integer, got 2.5"),
    ],
)  # fmt: skip
def test_image_data_names_its_field(field: str, value: Any, message: str):
    right: dict[str, Any] = {
        "images": FLOATS[:2], "labels": LABELS[:2], "mean": torch.zeros(3), "std": torch.ones(3), "num_classes": 4
    }  # fmt: skip
    with pytest.raises(PlantopsError, match=message):
        ImageData(**{**right, field: value})
