"""The text of an evaluation item, from a row of its data set: what is looked for in training data, and what a scored
document is recognised by.
"""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FIELDS = Path(__file__).with_name("item_fields.toml")


@functools.cache
def known_fields() -> Mapping[str, Mapping[str, Any]]:
    """The table of fields, by data set."""
    return tomllib.loads(FIELDS.read_text(encoding="utf-8"))


def item_text(data_set: str, row: Mapping[str, Any]) -> str:
    """The text of a row: question and right answer; of a data set that is not known, all strings.

    A row without an answer (test splits whose labels are secret) is its question alone.
    """
    known = known_fields().get(data_set)
    if known is None or not any(name in row for name in known["question"]):
        return "\n".join(strings(row))
    question = "\n".join(part for name in known["question"] for part in strings(row.get(name)))
    answer = "\n".join(strings(_answer(known["answer"], row)))
    blank = known.get("blank")
    if blank and answer and question.count(blank) == 1:
        return question.replace(blank, answer)
    return f"{question}\n{answer}" if answer else question


def strings(value: Any) -> Iterator[str]:
    """All strings in a value, in order. Bytes are none."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def _answer(how: str | Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    """The right answer; None where the row does not say which one that is."""
    if isinstance(how, str):
        return row.get(how)
    at = row.get(how["at"])
    choices = [row.get(name) for name in how["columns"]] if "columns" in how else _inside(row, how["of"])
    if not isinstance(choices, list):
        return None
    if "labels" in how:
        labels = _inside(row, how["labels"])
        place = labels.index(at) if isinstance(labels, list) and at in labels else -1
    else:
        place = int(str(at)) - how.get("first", 0) if str(at).isdecimal() else -1
    return choices[place] if 0 <= place < len(choices) else None


def _inside(row: Any, path: str) -> Any:
    for name in path.split("."):
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def item_mark(text: str) -> str:
    """What an item is recognised by: 16 hexadecimal digits over its text, or over a visual question's id."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
