"""How a figure looks, and how matplotlib's SVG becomes a part of the page.

Colour says which network, marker and line say which part of the data. The mid-tones keep a contrast of at least 3:1 on
white and on the dark page; axes and text take the page's own text colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from plantops.train.files import MissingExtra

INK, PAPER, FAINT = "#010203", "#030201", "#020301"
"""Stand-ins, replaced by the page's text, background and grid colours."""
ROLES = {
    "teacher": "#7d7d85",
    "initial": "#2f7ed8",
    "planted": "#2f7ed8",
    "finetuned": "#8a4fd0",
    "retrained": "#8a4fd0",
    "uniform": "#d9601a",
    "control": "#1d9a8a",
}
OTHER = "#b08012"
LAYERS = ("#1d9a8a", "#6f9a1f", "#b8860b", "#d0569a", "#8a63d2", "#5f7f95", "#c0503c", "#3d8fb5")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def role_colour(role: str) -> str:
    return ROLES.get(role, OTHER)


@contextmanager
def drawing(ink: str = INK, grid: str = FAINT) -> Iterator[Any]:
    """matplotlib with this page's settings, the caller's own untouched; yields the function that makes a figure.

    Args:
        ink, grid: colours of text and axes, and of grid lines; default: stand-ins for what `to_svg` makes of them.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plots need matplotlib, which is not installed: pip install 'plantops[plots]'") from error
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "plantops",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "grid.color": grid,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "text.parse_math": False,  # names are names, whatever signs they have
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.markersize": 6,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), ink
        ),
    }

    def figure(width: float, height: float) -> Any:
        return Figure(figsize=(width, height), layout="constrained")

    with matplotlib.rc_context(settings):
        yield figure


def to_svg(figure: Any, key: str) -> str:
    """The figure as an ``<svg>`` element: no fixed size, the page's font and colours, ids that begin with ``key``."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" ', 1)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r"url\(#", f"url(#{key}-", text)
    text = re.sub(r'href="#', f'href="#{key}-', text)
    for stand_in, colour in ((INK, "currentColor"), (PAPER, "var(--paper)"), (FAINT, "var(--grid)")):
        text = text.replace(stand_in, colour)
    return text.strip()
