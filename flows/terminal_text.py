"""Text for a terminal. What a stage, a file or a server says is never markup: it is shown as it is, control characters
made visible.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from rich.text import Text

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would move the cursor, change colours, turn the direction of the text, or cannot be encoded."""


def literal(value: object) -> str:
    """A value as text that a terminal shows as it is: control characters as escapes, tabs as spaces."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(value)).replace("\t", "    ")


def counted(number: float, noun: str) -> str:
    """A number of things: `1 node`, `1,200 nodes`."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def line(*parts: object | tuple[object, str]) -> Text:
    """A line of texts, each with a style or without: `line("found ", (name, "bold"))`. Nothing in them is markup."""
    from rich.text import Text

    return Text.assemble(*map(_styled, parts))


def _styled(part: object | tuple[object, str]) -> str | tuple[str, str]:
    if not isinstance(part, tuple):
        return literal(part)
    value, style = cast("tuple[object, str]", part)
    return literal(value), style
