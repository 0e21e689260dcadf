"""Layers whose new channels do not all lie behind the old ones: channels that are split into parts or folded.

``chunk(x, 2)`` of one layer's channels fits after growth only if each half grows by as many, so the layer must make
its new channels in two places. ``PixelShuffle(r)`` turns r^2 neighbours into one, so they come by r^2. What a forward
asks of a layer shows only behind it; therefore the graph is walked again, with the demands of the last walk, until it
asks for no more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from plantops.graph.forms import Form, of_layout
from plantops.graph.layout import Groups, Layout, Refused, Segment

Shape = tuple[int, int]
"""Parts that grow by as many channels each, and how many neighbouring channels one step of growth adds to a part."""

_MOST = 64


class Partition:
    """What is known of every layer's parts, and what a walk through the graph asks for beyond it.

    Attributes:
        groups: who grows together.
        demands: by layer, the shape that the next walk must give it.
    """

    def __init__(self, groups: Groups, shapes: Mapping[str, Shape], last: bool) -> None:
        self.groups = groups
        self._shapes = shapes
        self._last = last
        self._layers: dict[str, tuple[int, int]] = {}  # by name, group and width
        self.demands: dict[str, Shape] = {}

    def made(self, name: str, group: int, width: int) -> tuple[Segment, ...]:
        """What layer ``name`` makes."""
        self._layers[name] = (group, width)
        parts, unit = self.shape(name)
        return (Segment(group, width // parts, unit),) * parts

    def shape(self, name: str) -> Shape:
        return self._shapes.get(name, (1, 1))

    def demand(self, group: int, parts: int, unit: int, reason: str) -> Refused:
        """Ask that every part of ``group`` becomes so many, and ``unit`` times as many channels come at once. The
        refusal, for now and for good where that cannot be."""
        root = self.groups.find(group)
        wanted: dict[str, Shape] = {}
        for name, (own, width) in self._layers.items():
            if self.groups.find(own) == root:
                have = self.demands.get(name, self.shape(name))
                now = self.shape(name)
                shape = math.lcm(have[0], now[0] * parts), math.lcm(have[1], now[1] * unit)
                if width % math.prod(shape) or math.prod(shape) > _MOST:
                    return Refused(f"{reason}, for which {name} with its {width} channels cannot grow evenly")
                wanted[name] = shape
        if not self._last and self.groups.reason(group) is None:
            self.demands.update(wanted)
        return Refused(reason)

    def runs(self, layout: Layout, count: int, reason: str) -> list[Layout]:
        """The channels in ``count`` equal parts, which from then on grow by as many.

        Raises:
            Refused: they are not made alike, with ``reason``.
        """
        total = sum(part.size for part in layout.segments)
        if total % count:
            raise Refused(reason)
        size = total // count
        cut = self._cut_at(layout.segments, [size * i for i in range(1, count)], reason)
        runs: list[list[Segment]] = [[] for _ in range(count)]
        start = 0
        for part in cut:
            runs[start // size].append(part)
            start += part.size
        for run in runs[1:]:
            if [_kind(part) for part in run] != [_kind(part) for part in runs[0]]:
                raise Refused(reason)
            for first, other in zip(runs[0], run, strict=True):
                if first.group is not None and other.group is not None:
                    self.groups.unite(first.group, other.group)
        return [replace(layout, segments=tuple(run), path=None) for run in runs]

    def pieces(self, layout: Layout, ends: Sequence[Form], reason: str) -> list[Layout]:
        """The channels before the first of ``ends``, between the first and the second, and so on.

        Raises:
            Refused: an end that would be inside of other channels once these have grown, with ``reason``.
        """
        places: list[int] = []
        for end in ends:
            self._check_end(layout, end, reason)
            places.append(int(end.base))
        cut = self._cut_at(layout.segments, places, reason)
        found: list[list[Segment]] = [[] for _ in ends]
        start = 0
        for part in cut:
            at = next((i for i, place in enumerate(places) if start < place), None)
            if at is not None:
                found[at].append(part)
            start += part.size
        return [replace(layout, segments=tuple(run), path=None) for run in found]

    def _check_end(self, layout: Layout, end: Form, reason: str) -> None:
        """Is the place ``end`` between two segments, or at a fraction of one, and is it there after growth, too?"""
        before = Form(Fraction(0), {})
        for part in layout.segments:
            own = of_layout(replace(layout, segments=(part,)), self.groups)
            if end == before:
                return
            if before.base < end.base < (before + own).base:
                share = (end.base - before.base) / part.size
                if part.group is None and (end + before.scaled(-1)).constant():
                    return
                if part.group is not None and end == before + own.scaled(share):
                    raise self.demand(part.group, share.denominator, 1, reason)
                raise Refused(reason)
            before = before + own
        if end != before:
            raise Refused(reason)

    def _cut_at(self, segments: Sequence[Segment], places: Sequence[int], reason: str) -> list[Segment]:
        """The segments, those that belong to nobody cut at ``places``; the parts that others would have to be cut into
        are demanded."""
        result: list[Segment] = []
        start = 0
        for part in segments:
            inside = [place - start for place in places if start < place < start + part.size]
            if inside and part.group is not None:
                shares = [Fraction(place, part.size).denominator for place in inside]
                raise self.demand(part.group, math.lcm(*shares), 1, reason)
            ends = [0, *inside, part.size]
            result += [replace(part, size=end - begin) for begin, end in itertools.pairwise(ends)]
            start += part.size
        return result

    def folded(self, layout: Layout, times: int, reason: str) -> Layout:
        """``times`` neighbouring channels become one."""
        segments = []
        for part in layout.segments:
            if part.size % times:
                raise Refused(reason)
            if part.group is not None and part.repeat % times:
                raise self.demand(part.group, 1, times // math.gcd(times, part.repeat), reason)
            repeat = 1 if part.group is None else part.repeat // times
            segments.append(replace(part, size=part.size // times, repeat=repeat))
        return replace(layout, segments=tuple(segments), path=None)

    def match(self, first: Layout, second: Layout, reason: str) -> tuple[Layout, Layout]:
        """Two tensors that are joined entry by entry: as they are, where their channels are made of the same parts.

        Raises:
            Refused: they are made of other parts; those that one of them could be made of are demanded.
        """
        a, b = first.segments, second.segments
        if len(a) == len(b) == 1 or [part.size for part in a] == [part.size for part in b]:
            for one, other in zip(a, b, strict=True):
                if one.size != other.size:
                    raise Refused(reason)
                if one.group is not None and other.group is not None and one.repeat != other.repeat:
                    unit = math.lcm(one.repeat, other.repeat)
                    refusals = [self.demand(p.group, 1, unit // p.repeat, reason) for p in (one, other)
                                if p.group is not None and unit > p.repeat]  # fmt: skip
                    raise refusals[0]
            return first, second
        single, several = (a, b) if len(a) == 1 else (b, a)
        whole, group = single[0], single[0].group
        alike = len({_kind(part) for part in several}) == 1 and whole.size == sum(part.size for part in several)
        if len(single) > 1 or not alike or group is None:
            raise Refused(reason)
        raise self.demand(group, len(several), 1, reason)


def _kind(part: Segment) -> tuple[int, int, bool]:
    return part.size, part.repeat, part.group is not None
