"""What a trace finds: the sites that can grow, and why every other layer is refused.

A plan holds names and numbers, never modules, so it survives ``copy.deepcopy``, pickling and JSON, and it applies to
any copy of the model it was traced from.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plantops.errors import ArgumentError, ArgumentKeyError

_FORMAT = "plantops.plan.v1"
_SHOWN = 4


@dataclass(frozen=True)
class Consumer:
    """A layer that reads a site's channels.

    Attributes:
        name: qualified name of the convolution or linear layer.
        start: index of the first input feature that it reads from the site (0 in a chain; behind a concatenation the
            site's channels begin further on).
        per_channel: input features that one channel becomes: 1 for a convolution, H W for a linear layer behind a
            flattened H x W image. Where channels come in parts or units (``Site.outputs``): that one step of them,
            ``unit`` filters a part, becomes. A layer that reads the channels in several places is there several times.
        features: all input features of the layer at the time of the trace.
    """

    name: str
    start: int
    per_channel: int
    features: int


@dataclass(frozen=True)
class Channelwise:
    """A layer on the way with tensors of its own for every channel, which grow with the site.

    Attributes:
        name: qualified name of the layer.
        kind: "norm" (batch, instance, group), "conv" (depthwise or grouped) or "activation" (PReLU with slopes).
        start: index of its first input feature that is the site's.
        per_channel: input features that one channel becomes.
        features: all input features of the layer at the time of the trace.
    """

    name: str
    kind: str
    start: int
    per_channel: int
    features: int


@dataclass(frozen=True)
class Output:
    """How a producer's filters lie where new ones do not all come behind the old ones.

    Attributes:
        width: filters at the time of the trace.
        parts: equal runs of them, each of which gets as many new ones at its end.
        unit: neighbouring filters that come together in a run (r^2 in front of ``PixelShuffle(r)``).
    """

    width: int
    parts: int
    unit: int

    def step(self) -> int:
        """The fewest filters that can come."""
        return self.parts * self.unit


@dataclass(frozen=True)
class Site:
    """One place that can grow.

    Attributes:
        name: qualified name of the first producer; the site's key in the plan.
        producers: layers that gain filters; several where their outputs meet in a sum or a gate.
        norms: norms on the way, in order.
        passes: layers and functions on the way that treat every channel alike (activations, pooling, dropout, flatten,
            sums, concatenations).
        consumers: the layers that read the channels.
        width: channels of the first producer at the time of the trace; new channels are counted as its filters, too.
        parameters_per_channel: parameters that one more channel adds, in producers, norms and consumers. (A layer that
            is producer and consumer at once adds a little more for every further channel.)
        macs_per_channel: multiply-accumulates that one more channel adds for one sample of the example inputs.
        value_at_zero: what a channel that is 0 behind the producer (behind the last norm, if there are any) is where
            it is read, and ``slope_at_zero`` the derivative there: 0 and 0 with a ReLU between, 0 and 1 without.
            Only in a chain; elsewhere they are 0 and 0.
        channelwise: the layers on the way that have tensors for every channel, ``norms`` among them.
        multiple: channels come in multiples of this (whole groups of a grouped convolution or group norm).
        chain: one producer, one consumer, and only norms and pointwise functions between them.
        pinned: modules of the model that plant holds in ``eval()`` because their forward drops values in ``train()``.
        outputs: for each producer where its new filters come; empty where they all come behind its old ones.
    """

    name: str
    producers: tuple[str, ...]
    norms: tuple[str, ...]
    passes: tuple[str, ...]
    consumers: tuple[Consumer, ...]
    width: int
    parameters_per_channel: int
    macs_per_channel: int
    value_at_zero: float = 0.0
    slope_at_zero: float = 1.0
    channelwise: tuple[Channelwise, ...] = ()
    multiple: int = 1
    chain: bool = True
    pinned: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()

    def readers(self) -> tuple["Channelwise | Consumer", ...]:
        """Every layer that new channels reach: those on the way, then those that read them."""
        return (*self.channelwise, *self.consumers)

    def output(self, producer: str) -> Output:
        """How the filters of a producer lie."""
        if not self.outputs:
            return Output(self.width, 1, 1)
        return self.outputs[self.producers.index(producer)]

    def steps(self, channels: int) -> int:
        """``channels`` of the first producer in the fewest that can come at once."""
        return channels // self.output(self.name).step()

    def planted_outputs(self, producer: str, channels: int) -> list[tuple[int, int]]:
        """Before which old filters of a producer new ones come, and how many, when the site grows by ``channels``."""
        output = self.output(producer)
        count = self.steps(channels) * output.unit
        return [(output.width // output.parts * (part + 1), count) for part in range(output.parts)]

    def planted_start(self, consumer: Consumer | Channelwise) -> int:
        """First input feature of a reader, or of a layer on the way, that new channels take: behind the site's own."""
        return consumer.start + self.steps(self.width) * consumer.per_channel

    def planted_count(self, consumer: Consumer | Channelwise, channels: int) -> int:
        """How many input features ``channels`` new channels are for a reader, or for a layer on the way."""
        return self.steps(channels) * consumer.per_channel

    def blocks(self) -> int:
        """How many blocks of channels there are that can come, or go, alone."""
        return self.width // self.multiple

    def block(self, number: int, producer: str | None = None) -> list[int]:
        """Filters of a producer (of the first, if none is named) that are block ``number``."""
        output = self.output(producer or self.name)
        start = number * self._steps_a_block() * output.unit
        own = range(start, start + self._steps_a_block() * output.unit)
        return [output.width // output.parts * part + filter for part in range(output.parts) for filter in own]

    def read_block(self, number: int, reader: Consumer | Channelwise) -> range:
        """Input features of a reader, or of a layer on the way, that block ``number`` is there."""
        size = self._steps_a_block() * reader.per_channel
        return range(reader.start + number * size, reader.start + (number + 1) * size)

    def _steps_a_block(self) -> int:
        return self.multiple // self.output(self.name).step()


class Plan(Mapping[str, Site]):
    """The sites of a model in execution order, keyed by the qualified name of their first producer.

    The name of any producer finds its site. ``refusals`` maps every other convolution and linear layer to the reason
    why it cannot grow. ``print(plan)`` shows both as a table.
    """

    def __init__(self, sites: Iterable[Site], refusals: Mapping[str, str] | None = None) -> None:
        self._sites = {site.name: site for site in sites}
        self._names = {
            layer.name: site.name for site in self._sites.values() for layer in site.channelwise if layer.kind == "conv"
        }
        self._names |= {producer: site.name for site in self._sites.values() for producer in site.producers}
        self.refusals: dict[str, str] = dict(refusals or {})

    def __getitem__(self, name: str) -> Site:
        if name in self._names:
            return self._sites[self._names[name]]
        if name in self.refusals:
            raise ArgumentKeyError(f"{name} cannot grow: {self.refusals[name]}")
        raise ArgumentKeyError(f"no site {name!r}; the sites are {', '.join(self._sites) or 'none'}")

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return self._sites == other._sites and self.refusals == other.refusals

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Plan(sites=[{', '.join(self._sites)}], refused={len(self.refusals)})"

    def __str__(self) -> str:
        lines = []
        if self._sites:
            header = ("site", "channels", "norms", "on the way", "read by", "parameters/channel", "MACs/channel")
            lines += _aligned([header, *(_row(site) for site in self._sites.values())])
        else:
            lines.append("no layer can grow")
        if self.refusals:
            lines += ["", *_aligned([("refused", "because"), *self.refusals.items()])]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The plan as JSON text; ``Plan.from_json`` reads it back to an equal plan."""
        content = {"format": _FORMAT, "sites": [asdict(site) for site in self.values()], "refusals": self.refusals}
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what ``to_json`` wrote. Raises ``ValueError`` for any other text."""
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise ArgumentError(f"format {content['format']!r}")
            return cls([_site(fields) for fields in content["sites"]], content["refusals"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"text is not a plan written by Plan.to_json ({_FORMAT}): {error}") from error


def _site(fields: dict[str, Any]) -> Site:
    names = {key: tuple(fields[key]) for key in ("producers", "norms", "passes", "pinned")}
    consumers = tuple(Consumer(**consumer) for consumer in fields["consumers"])
    channelwise = tuple(Channelwise(**layer) for layer in fields["channelwise"])
    outputs = tuple(Output(**output) for output in fields.get("outputs", ()))
    return Site(**{**fields, **names, "consumers": consumers, "channelwise": channelwise, "outputs": outputs})


def _row(site: Site) -> tuple[str, ...]:
    readers = [_reader(reader) for reader in site.consumers]
    passes = [layer.name for layer in site.channelwise if layer.kind != "norm"] + list(site.passes)
    return (
        _some(site.producers),
        str(site.width) if site.multiple == 1 else f"{site.width} (by {site.multiple})",
        _some(site.norms),
        _some(passes),
        _some(readers),
        f"{site.parameters_per_channel:,}",
        f"{site.macs_per_channel:,}",
    )


def _reader(reader: Consumer) -> str:
    """``fc (x49)``: 49 features a channel; ``conv [64:]``: its channels begin at 64."""
    return (
        reader.name
        + (f" [{reader.start}:]" if reader.start else "")
        + (f" (x{reader.per_channel})" if reader.per_channel > 1 else "")
    )


def _some(names: Sequence[str]) -> str:
    """Names for a cell of the table, the first of many."""
    if len(names) > _SHOWN:
        return f"{', '.join(names[:_SHOWN])}, ... ({len(names)})"
    return ", ".join(names) or "-"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines of columns two spaces apart, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    numeric = [
        len(rows) > 1 and all(row[i].replace(",", "").isdigit() for row in rows[1:]) for i in range(len(rows[0]))
    ]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
