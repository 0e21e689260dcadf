"""The page: one HTML file with everything in it, readable in light and dark, on paper and on a telephone."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1e23; --soft: #5c6470; --grid: #dfe3e8; --panel: #f5f7f9;
  --accent: #2f7ed8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e4e7eb; --soft: #9aa3ae; --grid: #2c3138;
  --panel: #1c2026; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.75rem 0 .4rem; }
p { margin: .5rem 0; max-width: 44rem; }
.soft, figcaption, small { color: var(--soft); }
.lead { font-size: 1.1rem; max-width: 50rem; margin: 1.1rem 0; }
.notice { border-left: 4px solid #d9601a; background: var(--panel); padding: .75rem 1rem; max-width: none;
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.card { background: var(--panel); border-top: 4px solid var(--accent); border-radius: 4px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { display: block; color: var(--soft); font-size: .875rem; }
figure { margin: 1rem 0 1.75rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
figure svg { width: 100%; height: auto; display: block; }
.narrow { display: none; }
@media (max-width: 44rem) { .wide { display: none; } .narrow { display: block; } main { padding: 1.5rem .8rem 3rem; } }
figcaption { font-size: .9rem; max-width: 44rem; margin-top: .25rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .35rem .42rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
th.text, td.text { text-align: left; }
tr.mark td { font-weight: 600; }
table.pairs { min-width: 0; }
table.pairs td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
table.pairs td:first-child { color: var(--soft); white-space: nowrap; }
details summary { cursor: pointer; color: var(--soft); margin: .75rem 0; }
@media print { main { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""


def document(title: str, body: Sequence[str]) -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def escape(text: Any) -> str:
    return html.escape(str(text))


def paragraph(text: str, css: str = "") -> str:
    if not text:
        return ""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def section(title: str, parts: Sequence[str]) -> str:
    """A section with its heading, or nothing where it would be empty."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def figure(panels: Sequence[str], description: str, caption: str) -> str:
    """``description`` is read out where the pictures, which are panels side by side, cannot be seen."""
    inside = "".join(f"<div>{panel}</div>" for panel in panels)
    return (
        f'<figure>\n<div class="panels" role="img" aria-label="{escape(description)}">{inside}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def either(wide: str, narrow: str) -> str:
    """One picture twice: as wide as the page, and for a narrow screen."""
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def card(title: str, value: str, lines: Sequence[str], colour: str) -> str:
    rest = "".join(f"<span>{escape(line)}</span>" for line in lines)
    head = f"<span>{escape(title)}</span><b>{escape(value)}</b>"
    return f'<div class="card" style="border-color: {colour}">{head}{rest}</div>'


def cards(items: Sequence[str]) -> str:
    return f'<div class="cards">{"".join(items)}</div>' if items else ""


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1, marked: Sequence[int] = ()
) -> str:
    """The first ``text_columns`` columns are text (to the left), the others numbers; ``marked`` rows stand out."""
    if not rows:
        return ""

    def line(entries: Sequence[str], tag: str, css: str = "") -> str:
        cells = (
            f'<{tag} class="text">{escape(entry)}</{tag}>'
            if place < text_columns
            else f"<{tag}>{escape(entry)}</{tag}>"
            for place, entry in enumerate(entries)
        )
        return f"<tr{css}>{''.join(cells)}</tr>"

    body = "".join(line(row, "td", ' class="mark"' if place in marked else "") for place, row in enumerate(rows))
    head = line(columns, "th")
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def pairs(values: dict[str, Any]) -> str:
    """Names and values, nested values joined by dots."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in flat(values))
    return f'<table class="pairs"><tbody>{rows}</tbody></table>' if rows else ""


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    entries: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            entries += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            entries.append((prefix + name, ", ".join(map(str, value)) or "none"))
        else:
            entries.append((prefix + name, "none" if value is None else str(value)))
    return entries
