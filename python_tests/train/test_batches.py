import itertools

import pytest
import torch

from plantops.train import Augment, ImageData, epoch_batches, eval_batches, generator
from plantops.train.batches import batch_sizes, epoch_order


def plain_window(data: ImageData, sample: int, top: int, left: int, mirror: bool) -> torch.Tensor:
    """One image in float64: normalise, frame with zeros, cut, mirror - pixel by pixel."""
    channels, height, width = data.shape
    window = torch.zeros(channels, height, width, dtype=torch.float64)
    for channel, row, column in itertools.product(range(channels), range(height), range(width)):
        source_row, source_column = row + top, column + left
        if 0 <= source_row < height and 0 <= source_column < width:
            value = data.images[sample, channel, source_row, source_column].double()
            where = width - 1 - column if mirror else column
            window[channel, row, where] = (value - data.mean[channel].double()) / data.std[channel].double()
    return window


@pytest.mark.parametrize("augment", [Augment(2, True), Augment(2, False), Augment(0, True), Augment(9, True)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_augmentation_against_one_image_at_a_time(images, augment, channels_last):
    keys = ("candidate", 3, 1)
    tops = lefts = torch.zeros(37, dtype=torch.int64)
    if augment.crop:
        tops, lefts = torch.randint(-augment.crop, augment.crop + 1, (2, 37), generator=generator(11, *keys, "crop"))
    mirrors = torch.randint(0, 2, (37,), generator=generator(11, *keys, "flip")) if augment.flip else tops * 0
    order = torch.randperm(37, generator=generator(11, *keys, "order"))
    batches = list(epoch_batches(images, 8, seed=11, keys=keys, augment=augment, channels_last=channels_last))
    assert [len(batch.index) for batch in batches] == [8, 8, 8, 8, 5]
    assert torch.equal(torch.cat([batch.index for batch in batches]), order)
    for batch in batches:
        assert batch.images.dtype == torch.float32
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=layout)
        assert torch.equal(batch.labels, images.labels[batch.index])
        for sample, found in zip(batch.index.tolist(), batch.images, strict=True):
            expected = plain_window(images, sample, int(tops[sample]), int(lefts[sample]), bool(mirrors[sample]))
            # one subtraction and one division, each rounded once, of numbers below 256
            torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=3e-7)
            assert torch.equal(found == 0, expected == 0)


def test_every_offset_and_both_mirrorings_occur(images):
    seen = set()
    for epoch in range(40):
        crop = generator(0, epoch, "crop")
        tops, lefts = torch.randint(-1, 2, (2, 37), generator=crop)
        for batch in epoch_batches(images, 37, seed=0, keys=(epoch,), augment=Augment(1, True)):
            for sample, found in zip(batch.index.tolist(), batch.images, strict=True):
                top, left = int(tops[sample]), int(lefts[sample])
                mirror = not torch.allclose(found.double(), plain_window(images, sample, top, left, False), atol=1e-6)
                seen.add((top, left, mirror))
        if len(seen) == 18:
            break
    assert seen == set(itertools.product((-1, 0, 1), (-1, 0, 1), (False, True)))


def collect(data, batch_size, **options):
    batches = list(epoch_batches(data, batch_size, **options))
    order = torch.cat([batch.index for batch in batches])
    pictures = torch.cat([batch.images for batch in batches])
    return order, pictures


def test_a_function_of_seed_and_keys_alone(images):
    options = {"augment": Augment(2, True), "seed": 4, "keys": ("teacher", 2)}
    order, pictures = collect(images, 8, **options)
    torch.manual_seed(99)  # the global generator and the batch size change nothing
    again_order, again_pictures = collect(images, 5, **options)
    assert torch.equal(order, again_order)
    assert torch.equal(pictures, again_pictures)
    for other in ({"seed": 5}, {"keys": ("teacher", 3)}, {"keys": ("student", 2)}):
        other_order, other_pictures = collect(images, 8, **{**options, **other})
        assert not torch.equal(order, other_order)
        assert not torch.equal(pictures[order.argsort()], other_pictures[other_order.argsort()])


def test_augmentation_of_a_sample_does_not_depend_on_its_place(images):
    options = {"augment": Augment(2, True), "seed": 4, "keys": (1,)}
    order, pictures = collect(images, 8, **options)
    unshuffled_order, unshuffled = collect(images, 8, shuffle=False, **options)
    assert torch.equal(unshuffled_order, torch.arange(37))
    assert torch.equal(pictures[order.argsort()], unshuffled)


def test_eval_batches_are_all_samples_in_order(images):
    order, pictures = collect(images, 37, seed=0, shuffle=False)
    batches = list(eval_batches(images, 10))
    assert torch.equal(torch.cat([batch.images for batch in batches]), pictures)
    assert torch.equal(order, torch.arange(37))
    expected = (images.images.double() - images.mean.double().view(3, 1, 1)) / images.std.double().view(3, 1, 1)
    torch.testing.assert_close(pictures.double(), expected, rtol=3e-7, atol=3e-7)


def test_float_images_are_cut_the_same_way(images):
    as_float = ImageData(images.images.float(), images.labels, images.mean, images.std, 4)
    options = {"augment": Augment(2, True), "seed": 4}
    assert torch.equal(collect(images, 8, **options)[1], collect(as_float, 8, **options)[1])
    assert as_float.images.equal(images.images.float())  # never normalised in place


def test_sizes(images):
    """A rest of one sample joins the batch before it: every sample comes, and none comes alone."""
    assert batch_sizes(37, 8) == [8, 8, 8, 8, 5] == [len(batch.index) for batch in epoch_batches(images, 8, seed=0)]
    assert batch_sizes(37, 12) == [12, 12, 13]
    assert batch_sizes(37, 36) == [37]
    assert [batch_sizes(count, 8) for count in (0, 1, 8, 9, 10)] == [[], [1], [8], [9], [8, 2]]
    assert batch_sizes(3, 1) == [1, 1, 1]
    batches = list(epoch_batches(images, 12, seed=3))
    assert [len(batch.index) for batch in batches] == [12, 12, 13]
    order = torch.cat([batch.index for batch in batches])
    assert torch.equal(order, torch.cat([batch.index for batch in epoch_batches(images, 8, seed=3)]))
    assert torch.equal(epoch_order(5, seed=0, shuffle=False), torch.arange(5))
    assert list(eval_batches(images.subset([]), 4)) == []


def test_wrong_numbers_are_named(images):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        epoch_batches(images, 0, seed=0)
    with pytest.raises(ValueError, match="crop must be 0 or more whole pixels, got -1"):
        Augment(crop=-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_changes_neither_order_nor_augmentation(images):
    options = {"augment": Augment(2, True), "seed": 4, "keys": ("teacher", 2)}
    order, pictures = collect(images, 8, **options)
    device_order, device_pictures = collect(images.to("cuda"), 8, **options)
    assert device_pictures.device.type == "cuda"
    assert torch.equal(device_order.cpu(), order)
    torch.testing.assert_close(device_pictures.cpu(), pictures, rtol=3e-7, atol=3e-7)
