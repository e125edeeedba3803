"""Pieces of the report's page: tables, notes, bars (templates/pieces.html), and numbers for people."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

MISSING = Markup('<span class="missing">missing</span>')
"""What stands where a value is not known."""
NONE = Markup('<span class="none">–</span>')
"""What stands where there is nothing to tell."""
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""The page's HTML. Every value is escaped unless it is `Markup` already."""


@dataclass(frozen=True)
class Section:
    """One part of the page: `id` is its anchor (letters and dashes), `body` what stands under the title."""

    id: str
    title: str
    body: Markup


def template(name: str, **values: Any) -> Markup:
    """A file of `templates/`, filled."""
    return Markup(TEMPLATES.get_template(name).render(**values))


@functools.cache
def _pieces() -> Any:
    return TEMPLATES.get_template("pieces.html").module


def join(*parts: Markup | str | None) -> Markup:
    """Parts one after the other; strings are escaped."""
    return Markup("\n").join(part for part in parts if part is not None)


def paragraph(text: Markup | str, kind: str = "") -> Markup:
    """A paragraph; kind 'note' is small print, 'warning' stands out."""
    return _pieces().paragraph(text, kind)


def heading(text: Markup | str, id: str = "") -> Markup:
    """A heading inside a section; `id`: its anchor."""
    return _pieces().heading(text, id)


def items(rows: Sequence[Markup | str]) -> Markup:
    """A list."""
    return _pieces().items(rows)


def code(text: str, short: int | None = None) -> Markup:
    """A hash, a path, a name in code. `short` shows that many characters, and the whole on hovering."""
    return _pieces().code(text, short)


def details(summary: Markup | str, body: Markup) -> Markup:
    """A part that opens on a click, and is printed open."""
    return _pieces().details(summary, body)


def figure(svg: Markup, caption: Markup | str) -> Markup:
    """A picture with what it shows."""
    return _pieces().figure(svg, caption)


def table(
    head: Sequence[Markup | str],
    rows: Sequence[Sequence[Any]],
    numbers: Collection[int] = (),
    foot: Sequence[Sequence[Any]] = (),
    ids: Sequence[str] = (),
) -> Markup:
    """A table. `numbers`: columns that are set to the right; `foot`: rows of sums; `ids`: an anchor for each row.

    A cell that is None reads "missing".
    """
    return _pieces().table(head, rows, numbers, foot, ids)


def badge(text: str, kind: str) -> Markup:
    """A word on a coloured ground: kinds ok, drift, changed, stale, damaged, missing, note."""
    return _pieces().badge(text, kind)


def bar(fraction: float, kind: str = "") -> Markup:
    """A horizontal bar of 0 to 1 of its cell's width."""
    return _pieces().bar(f"{100 * min(1.0, max(0.0, fraction)):.1f}", kind)


# --- numbers --------------------------------------------------------------------------------------------------------


def number(value: Any, digits: int | None = None) -> Markup | str:
    """A number with its thousands apart; `digits` after the point. Anything else than a number reads "missing"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    return f"{value:,}" if digits is None else f"{value:,.{digits}f}"


def short(value: float) -> str:
    """A count in three digits: 799,744 is '800 k', 8.11e9 is '8.11 B'."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def size(value: Any) -> Markup | str:
    """Bytes for people, in powers of ten."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= power:
            return f"{value / power:,.1f} {unit}"
    return f"{value:,.0f} B"


def duration(value: Any) -> Markup | str:
    """Seconds for people."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def percent(part: Any, whole: Any) -> Markup | str:
    """A share in per cent; "missing" when one of the two is not known."""
    if not isinstance(part, int | float) or not isinstance(whole, int | float) or not whole:
        return MISSING
    return f"{100 * part / whole:.1f} %"


def when(text: str | None) -> str:
    """An ISO time of the ledger as 'date time UTC'."""
    return f"{text[:19].replace('T', ' ')} UTC" if text else "unknown"
