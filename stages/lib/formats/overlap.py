"""An `Overlap` on disk: which evaluation items the training data holds, by training node.

| file | what |
| --- | --- |
| `overlap.json` | the rule, what was scanned, and of every split how many items are flagged by each training node |
| `items/<owner>/<name>.jsonl` | `ItemOverlap` rows: every item of a data set |

An item is its number in its split. Which of the training nodes a model learned from is for the reader to know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.errors import InputError

FILE = "overlap.json"
VERSION = 1
Category = Literal["clean", "not clean", "dirty", "skipped"]
NOT_CLEAN, DIRTY = 0.2, 0.8
"""Llama 2, appendix A.6: shares of contaminated tokens from which on an item is not clean, and is dirty."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OverlapRule(_Part):
    """What counts as a match."""

    name: Literal["gpt3", "llama2"]
    run: int = Field(description="words of a match at least")
    min_words: int = Field(description="items of fewer words are skipped")
    common: int | None = Field(description="runs in more training documents than this are ignored; None: none is")
    skips: int = Field(description="words that may differ inside a span")


class TrainingData(_Part):
    """What was scanned of one node."""

    node: str
    kind: Literal["documents", "conversations", "preferences", "problems", "images"]
    digest: str = Field(description="content digest of the artifact")
    documents: int
    bytes: int = Field(description="of UTF-8 text")
    words: int


class SplitOverlap(_Part):
    """The items of one split."""

    data_set: str
    config: str
    split: str
    toy: bool = Field(description="made questions in the data set's format, not the data set itself")
    text: str = Field(description="what the text of an item is made of")
    items: int
    skipped: int = Field(description="items with fewer words than min_words: nothing is known of them")
    only_common: int = Field(description="items that have nothing but ignored runs in common with the training data")
    flagged: dict[str, int] = Field(description="by training node: items that it holds a match of")
    any: int = Field(description="items that some node holds a match of")


class Overlap(_Part):
    """The whole of it."""

    schema_version: int = VERSION
    rule: OverlapRule
    runs: int = Field(description="different runs of words that were looked for")
    ignored_runs: int = Field(description="of them, those that more than `common` training documents hold")
    equal_hashes: int = Field(description="equal 64-bit hashes of texts that differ, found by comparing them")
    training: tuple[TrainingData, ...]
    splits: tuple[SplitOverlap, ...]


class Match(_Part):
    """What one training node holds of an item."""

    node: str
    fraction: float = Field(description="share of the item's words that lie in a match")
    longest: int = Field(description="words of the longest match")
    spans: tuple[tuple[int, int], ...] = Field(description="the words in a match: from, and before which")
    document: str = Field(description="id of a training document that holds a match of it")


class ItemOverlap(_Part):
    """One item."""

    config: str
    split: str
    item: int = Field(description="its number in the split, from 0")
    mark: str = Field(description="what it is recognised by (`stages.lib.evaluation.item_text.item_mark`)")
    words: int
    skipped: bool = False
    only_common: bool = False
    matches: tuple[Match, ...] = ()

    def share(self, nodes: Collection[str]) -> float:
        """Share of the words that lie in a match of some of these nodes."""
        places = {p for m in self.matches if m.node in nodes for low, high in m.spans for p in range(low, high)}
        return len(places) / self.words if self.words else 0.0

    def category(self, rule: OverlapRule, nodes: Collection[str]) -> Category:
        """What the rule says of the item, for a model that learned from these nodes.

        `gpt3` knows clean and dirty. Llama 2's four overlap in pairs (clean or not, dirty or not): here each item has
        one: clean below 20 %, not clean from there, which is called 'not clean' below 80 %, and dirty from there.
        """
        if self.skipped:
            return "skipped"
        if rule.name == "gpt3":
            return "dirty" if any(m.node in nodes for m in self.matches) else "clean"
        share = self.share(nodes)
        return "dirty" if share >= DIRTY else "not clean" if share >= NOT_CLEAN else "clean"


def items_path(data_set: str) -> str:
    """Where the items of a data set lie in the artifact."""
    return f"items/{data_set}.jsonl"


def write_items(folder: Path, data_set: str, rows: Iterable[ItemOverlap]) -> None:
    """Write the rows of one data set."""
    path = folder / items_path(data_set)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(row.model_dump_json(exclude_defaults=True) + "\n" for row in rows)


def parse_items(data: bytes, where: str) -> list[ItemOverlap]:
    """Read a file of items. Raises InputError naming `where` and the line."""
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            rows.append(ItemOverlap.model_validate_json(line))
        except ValidationError as error:
            raise InputError(f"{where}, line {number} is no overlap: {error.errors()[0]['msg']}") from error
    return rows


def write_overlap(folder: Path, overlap: Overlap) -> None:
    """Write overlap.json."""
    (folder / FILE).write_text(overlap.model_dump_json(indent=1) + "\n", encoding="utf-8")


def parse_overlap(data: bytes, where: str) -> Overlap:
    """Read overlap.json's bytes. Raises InputError naming `where`."""
    try:
        return Overlap.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"{where} is no overlap of version {VERSION}: {error.errors()[0]['msg']}") from error
