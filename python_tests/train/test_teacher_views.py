"""Teacher's logits of every view: what they are, that a kept row counts, and that nothing else is taken for it."""

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plantops.models import PlantingNet
from plantops.train import Augment, ImageData, TeacherViews, epoch_batches
from plantops.train.batches import epoch_draws, view_batch

CROPS = Augment(1, True)


def images(count: int = 24, seed: int = 0) -> ImageData:
    own = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 2, 8, 8), generator=own, dtype=torch.uint8)
    mean, std = torch.tensor([120.0, 130.0]), torch.tensor([60.0, 70.0])
    return ImageData(pixels, torch.arange(count) % 3, mean, std, 3)


class Counted(nn.Module):
    """A network and how many images it saw, and in what numbers."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        own = torch.Generator().manual_seed(3)
        self.model = PlantingNet([5] * 5, 3, in_channels=2, image_size=8, fc_width=7, generator=own)
        self.scale, self.asked = scale, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.asked.append(len(images))
        return self.model(images) * self.scale


def rows_of(views: TeacherViews, *epochs: int, batch_size: int = 10) -> Tensor:
    """The rows of these epochs, in the data's order."""
    found = []
    for epoch in epochs:
        pairs = [(batch.index, rows) for batch, rows in views.batches(batch_size, keys=("k", epoch))]
        index, rows = (torch.cat(part) for part in zip(*pairs, strict=True))
        found.append(rows[index.argsort()])
    return torch.cat(found)


@pytest.mark.parametrize(
    "augment", [CROPS, Augment(2), Augment(3, True, views=4), Augment(0, True), Augment()], ids=str
)
@pytest.mark.parametrize(("scale", "kind"), [(1.0, torch.float16), (1e4, torch.float32), (1.0, torch.float64)])
def test_rows_are_the_logits_rounded_once(augment: Augment, scale: float, kind: torch.dtype) -> None:
    """Against the teacher in float64 on the same images: half a unit of the dtype beside what float32 computes."""
    data, teacher = images(), Counted(scale).eval()
    exact = copy.deepcopy(teacher).double()
    asked: Any = (lambda x: exact(x.double())) if kind == torch.float64 else teacher
    views = TeacherViews(asked, data, augment)
    for batch, rows in views.batches(10, keys=("k", 0)):
        with torch.no_grad():
            want = exact(batch.images.double())
            own = 0.0 if kind == torch.float64 else float((teacher(batch.images).double() - want).abs().max())
        assert rows.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        largest = float(want.abs().max())
        # What torch's own float32 is off by (in another batch: as much again), and one rounding.
        bound = 4 * own + 1e-6 * largest + torch.finfo(kind).eps / 2 * want.abs() + 2**-25
        assert ((rows.double() - want).abs() <= bound).all()
        assert torch.equal(views(batch), rows)
    assert (views.nbytes - 4 * views.rows) // views.rows == 3 * kind.itemsize


def test_each_view_is_computed_once_in_batches_of_one_size() -> None:
    data, teacher = images(40), Counted()
    views = TeacherViews(teacher, data, CROPS)
    teacher.asked.clear()
    first = rows_of(views, 0)
    known = views.known
    assert known == 40
    assert torch.equal(rows_of(views, 0, batch_size=7), first)
    assert sum(teacher.asked) == 128
    rows_of(views, 1, 2, 3)
    assert set(teacher.asked) == {128}
    views.fill()
    assert views.known == views.rows == 40 * 18
    calls = len(teacher.asked)
    rows_of(views, *range(4, 12))
    assert len(teacher.asked) == calls


@pytest.mark.parametrize("how", ["another batch size", "one batch at a time", "ahead", "other epochs before"])
def test_bits_do_not_depend_on_who_asked_for_what(how: str) -> None:
    """Two stores that begin with nothing."""
    data = images(300)
    want = rows_of(TeacherViews(Counted(), data, CROPS), 0, 1)
    views = TeacherViews(Counted(), data, CROPS)
    if how == "ahead":
        views.fill()
    elif how == "other epochs before":
        rows_of(views, 5, 6, 1)
    elif how == "one batch at a time":
        for epoch in (0, 1):
            for batch in epoch_batches(data, 13, seed=0, keys=("k", epoch), augment=CROPS):
                views(batch)
    assert torch.equal(rows_of(views, 0, 1, batch_size=64), want)


def test_the_row_that_is_kept_counts(tmp_path: Path) -> None:
    """Another number of threads, another seed, a killed run: whoever asks gets the bits that were written first."""
    data, teacher = images(300), Counted()
    threads = torch.get_num_threads()
    first = rows_of(TeacherViews(teacher, data, CROPS, folder=tmp_path), 0)
    try:
        torch.set_num_threads(3 - min(2, threads))
        views = TeacherViews(teacher, data, CROPS, folder=tmp_path, seed=1)
        teacher.asked.clear()
        again = torch.cat([rows for _, rows in sorted_pairs(views, seed=0)])
        assert torch.equal(again, first)
        assert not teacher.asked
    finally:
        torch.set_num_threads(threads)


def sorted_pairs(views: TeacherViews, seed: int) -> list[tuple[int, Tensor]]:
    pairs = itertools.chain.from_iterable(
        zip(batch.index.tolist(), rows.split(1), strict=True)
        for batch, rows in views.batches(9, keys=("k", 0), seed=seed)
    )
    return sorted(pairs, key=lambda pair: pair[0])


class Killed(Exception):
    pass


def test_a_run_that_was_killed_while_it_filled_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    data = images(1000)
    want = rows_of(TeacherViews(Counted(), data, CROPS), 0, 1)
    teacher = Counted()
    views = TeacherViews(teacher, data, CROPS, folder=tmp_path)
    ask, left = views._ask, iter(range(5))

    def dies(batch: Tensor) -> Tensor:
        if next(left, None) is None:
            raise Killed
        return ask(batch)

    views._ask = dies  # type: ignore[assignment]
    with pytest.raises(Killed):
        rows_of(views, 0)
    del views
    views = TeacherViews(teacher, data, CROPS, folder=tmp_path)
    assert views.known == 5 * 128
    assert torch.equal(rows_of(views, 0, 1), want)


def test_what_is_damaged_is_computed_again(tmp_path: Path) -> None:
    data, teacher = images(), Counted()
    views = TeacherViews(teacher, data, CROPS, folder=tmp_path)
    first = rows_of(views, 0)
    assert views.path is not None
    with views.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x55" * (views.nbytes // 2))
    assert torch.equal(rows_of(views, 0), first)  # in the process that has it open
    assert torch.equal(rows_of(TeacherViews(teacher, data, CROPS, folder=tmp_path), 0), first)


def test_what_is_not_the_same_has_a_file_of_its_own(tmp_path: Path) -> None:
    data, teacher = images(), Counted()

    def opened(**changes: Any) -> TeacherViews:
        return TeacherViews(**{"teacher": teacher, "data": data, "augment": CROPS, "folder": tmp_path, **changes})

    few = Augment(1, True, views=4)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    first = opened()
    rows_of(first, 0)
    same = [opened(seed=1), opened(channels_last=True), opened(teacher=copy.deepcopy(teacher)), opened(augment=CROPS)]
    assert {views.path for views in same} == {first.path}
    others = [
        opened(teacher=other),
        opened(data=images(seed=1)),
        opened(data=dataclasses.replace(data, mean=data.mean + 1)),
        opened(data=dataclasses.replace(data, std=data.std * 2)),
        opened(augment=Augment(2, True)),
        opened(augment=Augment(1, False)),
        opened(augment=few),
        opened(augment=few, seed=1),
    ]
    assert len({views.path for views in [first, *others]}) == 9
    assert all(views.known == 0 for views in others)


def test_a_teacher_whose_code_has_changed_is_noticed(tmp_path: Path) -> None:
    """The same weights and names, and something else that is computed."""
    data, teacher = images(), Counted()
    rows_of(TeacherViews(teacher, data, CROPS, folder=tmp_path), 0)
    changed = Counted(scale=1.2)
    views = TeacherViews(changed, data, CROPS, folder=tmp_path)
    assert views.known == 0
    assert torch.equal(rows_of(views, 0), rows_of(TeacherViews(changed, data, CROPS), 0))


def test_any_callable_teaches_and_lies_on_disk_where_it_is_named(tmp_path: Path) -> None:
    data, model = images(), Counted().eval()
    unnamed = TeacherViews(lambda x: model(x), data, CROPS, folder=tmp_path)
    named = TeacherViews(lambda x: model(x), data, CROPS, folder=tmp_path, identity="mine")
    assert unnamed.path is None
    assert named.path is not None
    assert torch.equal(rows_of(unnamed, 0), rows_of(named, 0))


@pytest.mark.parametrize("augment", [Augment(2, True, views=6), Augment(2, False, views=3)], ids=str)
def test_few_views_are_drawn_from_the_seed_alone(augment: Augment) -> None:
    data = images(200)
    seen: list[set[tuple[int, int]]] = [set() for _ in range(200)]
    for epoch in range(30):
        draws = epoch_draws(200, augment, seed=7, keys=(epoch,))
        assert draws is not None
        assert int(draws.view.max()) == augment.count - 1
        for image, window in enumerate(zip(draws.top.tolist(), draws.left.tolist(), strict=True)):
            seen[image].add(window)
    assert max(map(len, seen)) == 3
    assert set().union(*seen) == set(itertools.product(range(-2, 3), repeat=2))
    other = epoch_draws(200, augment, seed=8, keys=(0,))
    assert other is not None
    windows = zip(other.top.tolist(), other.left.tolist(), strict=True)
    assert any(window not in of_image for of_image, window in zip(seen, windows, strict=True))
    views = TeacherViews(Counted(), data, augment, seed=7)
    with pytest.raises(ValueError, match="seed must be that of the views, 7, got 8"):
        views.complete(keys=(), seed=8)


@pytest.mark.parametrize("augment", [Augment(2, True), Augment(1, False), Augment(2, True, views=6), Augment(0, True)])
def test_a_number_is_one_view(augment: Augment) -> None:
    """What an epoch cuts is what its numbers say, and there are ``count`` of them."""
    data = images(30)
    for batch in epoch_batches(data, 30, seed=3, keys=(1,), augment=augment):
        assert batch.view is not None
        again = view_batch(data, batch.index, batch.view, augment, seed=3)
        assert torch.equal(again.images, batch.images)
        assert torch.equal(again.labels, batch.labels)
    if augment.views is None:
        one = torch.zeros(augment.count, dtype=torch.int64)
        all_views = view_batch(data, one, torch.arange(augment.count), augment, seed=3)
        assert len({view.numpy().tobytes() for view in all_views.images}) == augment.count


def test_errors_name_the_numbers() -> None:
    data = images()
    with pytest.raises(ValueError, match=r"memory must be at least 4320 for 432 views \(18 of each image\), got 4319"):
        TeacherViews(Counted(), data, CROPS, memory=4319)
    with pytest.raises(ValueError, match="data must hold at least one image, got 0"):
        TeacherViews(Counted(), data.subset([]), CROPS)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(TeacherViews(Counted(), data, CROPS).batches(0, keys=()))
    with pytest.raises(ValueError, match="views must be an even whole number of at least 2, with flips, got 3"):
        Augment(1, True, views=3)
    with pytest.raises(ValueError, match="views must be a whole number of at least 1, got 0"):
        Augment(1, views=0)
