"""Open one row of data sets of the hub, or of a mirror, with the stages' own readers: `moxin check --sources` starts
this program.

A request names data_set, config, split (None: the first), revision and mirror; row_type, where a row must read as one:
conversation, preference or problem (stages/lib/data/dataset_adapters.py). Where it names one, the answer counts broken
lines before the first row, which the run passes over too. Of its files the beginning of one is read, where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.probing import serve
from stages.lib.data.dataset_adapters import BadRow, conversation_messages, preference_parts, problem_parts
from stages.lib.data.rows import FileRows, Skipped, own_files

ROW_PARSERS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "conversation": lambda row: conversation_messages(row, False),
    "preference": preference_parts,
    "problem": problem_parts,
}

FIRST = 64
"""Lines among which there must be a row (`ingest`'s probe has the same bound)."""


class FirstSkipped(Skipped):
    """Broken lines before the first row. Raises InputError when they are too many."""

    def add(self, reason: str, place: str) -> None:
        super().add(reason, place)
        if self.counts.total() >= FIRST:
            raise InputError(f"no row among the first {FIRST} lines: {self.summary()}")


def open_one(request: Mapping[str, Any]) -> str:
    """The columns of the first row. Raises InputError saying what cannot be had."""
    import datasets

    datasets.disable_progress_bars()
    name, mirror = request["data_set"], request["mirror"]
    config = None if request["config"] == "default" else request["config"]
    revision = None if mirror else request["revision"]
    place = str(Path(mirror) / name) if mirror else name
    builder: Any = datasets.load_dataset_builder(place, config, revision=revision)
    files = own_files(builder)
    by_split: Any = files or datasets.load_dataset(place, config, revision=revision, streaming=True)
    split = request["split"] or next(iter(by_split))
    if split not in by_split:
        raise InputError(f"no split '{split}', only {', '.join(by_split)}")
    check = ROW_PARSERS.get(request.get("row_type") or "")
    skipped = FirstSkipped() if check else None  # a run draws such rows, and passes over broken lines
    if files:
        row = FileRows(name, files[split], Path(), builder.info.features, skipped=skipped).first()
    else:
        row = next(iter(by_split[split]), None)
    passed_over = (
        f"{skipped.counts.total()} bad lines passed over: {skipped.summary()}" if skipped and skipped.counts else ""
    )
    if row is None:
        raise InputError(f"split '{split}' has no row" + (f", {passed_over}" if passed_over else ""))
    if check:
        try:
            check(row)
        except BadRow as error:
            raise InputError(f"its first row does not read as a {request['row_type']}: {error}") from error
    return f"split {split}, columns {', '.join(row)}" + (f"; {passed_over}" if passed_over else "")


if __name__ == "__main__":
    serve(open_one)
