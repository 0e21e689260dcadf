import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from plantops.train import DataError, ImageData, from_dataset, load, stratified_split
from plantops.train.data import channel_statistics


def test_statistics_are_float64_exact():
    pixels = torch.randint(0, 256, (3000, 2, 9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, 1] = 7
    mean, std = channel_statistics(pixels)
    flat = pixels[:, 0].numpy().astype(np.float64)
    assert mean[0].item() == np.float32(flat.mean())
    assert std[0].item() == pytest.approx(flat.std(), rel=1e-7)
    assert (mean[1].item(), std[1].item()) == (7.0, 1.0)  # a constant channel must not divide by zero


def test_digits_parts():
    sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="digits need scikit-learn")
    bunch = sklearn_datasets.load_digits()
    parts = load("digits", seed=0)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (1294, 144, 359)
    assert parts.train.shape == (1, 8, 8)
    assert parts.train.num_classes == 10
    # every image is used once, with its own label and its raw values
    found = sorted(
        (image.flatten().tolist(), int(label))
        for part in (parts.train, parts.val, parts.test)
        for image, label in zip(part.images, part.labels, strict=True)
    )
    given = sorted(
        (image.astype(int).flatten().tolist(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert found == given
    for part in (parts.val, parts.test):  # of the training part alone
        assert torch.equal(part.mean, parts.train.mean)
        assert torch.equal(part.std, parts.train.std)
    values = parts.train.images.double()
    assert parts.train.mean.item() == values.mean().float().item()
    shares = torch.stack([part.labels.bincount() / len(part) for part in (parts.train, parts.val, parts.test)])
    assert (shares - shares.mean(0)).abs().max() < 0.01


def test_the_test_part_does_not_depend_on_the_seed():
    pytest.importorskip("sklearn", reason="digits need scikit-learn")
    one, two = load("digits", seed=1), load("digits", seed=2)
    assert one.test.fingerprint() == two.test.fingerprint()
    assert one.val.fingerprint() != two.val.fingerprint()
    assert one.val.fingerprint() == load("digits", seed=1).val.fingerprint()


def test_stratified_split_counts():
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 3 + [3])
    kept, held = stratified_split(labels, 0.25, seed=3)
    # shares 2.5, 1.75, 0.75, 0.25 of round(5.25) = 5: 2, 1, 0, 0, and one more for each remainder of .75
    assert labels[held].bincount(minlength=4).tolist() == [2, 2, 1, 0]
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(21))
    assert kept.tolist() == sorted(kept.tolist())
    again = stratified_split(labels, 0.25, seed=3)
    assert torch.equal(again[1], held)
    other = [stratified_split(labels, 0.25, seed=seed)[1].tolist() for seed in range(8)]
    assert len({tuple(held) for held in other}) > 4


def test_stratified_split_never_empties_a_class():
    labels = torch.tensor([0, 0, 1, 1, 2])
    kept, _ = stratified_split(labels, 0.9, seed=0)
    assert sorted(labels[kept].tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="holds out none"):
        stratified_split(torch.tensor([0, 1, 2]), 0.5, seed=0)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
            stratified_split(labels, fraction, seed=0)


def test_fingerprint_sees_every_change(images):
    base = images.fingerprint()
    assert images.to("cpu").fingerprint() == base
    assert images.subset(range(37)).fingerprint() == base
    assert images.subset([1, 0, *range(2, 37)]).fingerprint() != base
    changed = images.subset(range(37))
    changed.images[36, 2, 6, 4] ^= 1
    assert changed.fingerprint() != base
    relabelled = images.subset(range(37))
    relabelled.labels[0] = 3
    assert relabelled.fingerprint() != base


def test_subset_and_normalise(images):
    part = images.subset([4, 2])
    assert torch.equal(part.images, images.images[[4, 2]])
    assert part.labels.tolist() == [0, 2]
    expected = (part.images.double() - images.mean.double().view(3, 1, 1)) / images.std.double().view(3, 1, 1)
    torch.testing.assert_close(part.normalise(part.images).double(), expected, rtol=3e-7, atol=3e-7)


def test_from_dataset_of_tensors_arrays_and_pictures():
    tensors = torch.randint(0, 256, (6, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    data = from_dataset(TensorDataset(tensors, labels), name="mine")
    assert torch.equal(data.images, tensors)
    assert torch.equal(data.labels, labels)
    assert (data.num_classes, data.name) == (3, "mine")
    mean, std = channel_statistics(tensors)
    assert torch.equal(data.mean, mean)
    assert torch.equal(data.std, std)
    arrays = [(image.permute(1, 2, 0).numpy(), int(label)) for image, label in zip(tensors, labels, strict=True)]
    assert torch.equal(from_dataset(arrays).images, tensors)
    pictures_module = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    pictures = [(pictures_module.fromarray(array), label) for array, label in arrays]
    assert torch.equal(from_dataset(pictures, num_classes=5).images, tensors)
    grey = [(array[:, :, 0], label) for array, label in arrays]
    assert torch.equal(from_dataset(grey).images, tensors[:, :1])
    floats = from_dataset(TensorDataset(tensors.double() / 255, labels))
    assert floats.images.dtype == torch.float32
    assert torch.equal(floats.images, (tensors.double() / 255).float())
    held = from_dataset(TensorDataset(tensors[:2], labels[:2]), num_classes=3).normalised_like(data)
    assert torch.equal(held.mean, data.mean)


def test_from_dataset_names_what_is_wrong():
    good = (torch.zeros(3, 4, 4), 0)
    with pytest.raises(ValueError, match="at least one sample"):
        from_dataset([])
    with pytest.raises(TypeError, match=r"dataset\[0\] must be \(image, label\)"):
        from_dataset([torch.zeros(3, 4, 4)])
    with pytest.raises(ValueError, match=r"dataset\[1\].*\[3, 4, 4\].*\[3, 4, 5\]"):
        from_dataset([good, (torch.zeros(3, 4, 5), 1)])
    with pytest.raises(ValueError, match=r"must lie in 0 to 1, got 0 to 2"):
        from_dataset([good, (torch.zeros(3, 4, 4), 2)], num_classes=2)


def test_image_data_checks_its_tensors():
    mean = std = torch.ones(1)
    with pytest.raises(ValueError, match=r"images must be uint8 or float32.*torch\.int64"):
        ImageData(torch.zeros(2, 1, 3, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), mean, std, 2)
    with pytest.raises(ValueError, match=r"labels must be int64 \[2\]"):
        ImageData(torch.zeros(2, 1, 3, 3), torch.zeros(3, dtype=torch.int64), mean, std, 2)
    with pytest.raises(ValueError, match=r"std must have one value per channel \[1\], got \[2\]"):
        ImageData(torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), mean, torch.ones(2), 2)


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=r"digits, cifar10, cifar100, stl10, folder:PATH, got 'mnist'"):
        load("mnist")
    with pytest.raises(ValueError, match="val_fraction must lie between 0 and 1"):
        load("digits", val_fraction=1.0)
    with pytest.raises(ValueError, match="train_fraction must be above 0 and at most 1, got 0"):
        load("digits", train_fraction=0.0)
    with pytest.raises(ValueError, match="image_size must be an integer of at least 1, got 0"):
        load("digits", image_size=0)


def test_a_share_of_the_training_part_is_every_class_alike():
    pytest.importorskip("sklearn", reason="digits need scikit-learn")
    whole, tenth = load("digits", seed=3), load("digits", seed=3, train_fraction=0.1)
    assert len(tenth.train) == round(0.1 * len(whole.train))
    counts, few = whole.train.labels.bincount(), tenth.train.labels.bincount()
    assert ((few - 0.1 * counts).abs() <= 1).all()
    assert torch.equal(tenth.val.images, whole.val.images)
    assert torch.equal(tenth.test.images, whole.test.images)
    known = {image.numpy().tobytes() for image in whole.train.images}
    assert all(image.numpy().tobytes() in known for image in tenth.train.images)
    assert torch.allclose(tenth.train.mean, tenth.train.images.double().mean().float())


def test_image_size_resizes_to_the_nearest_level():
    pytest.importorskip("sklearn", reason="digits need scikit-learn")
    small, large = load("digits"), load("digits", image_size=16)
    assert large.train.shape == (1, 16, 16)
    assert large.train.images.dtype == torch.uint8
    assert torch.equal(large.train.labels, small.train.labels)
    expected = torch.nn.functional.interpolate(
        small.test.images.double(), (16, 16), mode="bilinear", align_corners=False
    )
    assert (large.test.images.double() - expected).abs().max() <= 0.5 + 1e-6
