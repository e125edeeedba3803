"""What became of the documents: documents and bytes by reason; and the step that writes those that are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.dedup.lsh import EXACT, KEPT, NEAR, SHORT
from stages.lib.data import stored_array
from stages.lib.formats.corpus import Shard, count_values, read_shard
from stages.lib.formats.documents import DocumentWriter, text_buffer

REASONS = {NEAR: "near duplicate", SHORT: "short", EXACT: "exact duplicate"}


class Funnel:
    """Documents and bytes by what became of them; of those that are left, also sources, licenses and lengths."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, int]] = {"in": {"documents": 0, "bytes": 0}, "out": {"documents": 0, "bytes": 0}}
        self.sources: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()

    def count(self, reason: str, documents: int, size: int) -> None:
        """Add documents of `size` bytes together."""
        if documents:
            row = self.rows.setdefault(reason, {"documents": 0, "bytes": 0})
            row["documents"] += int(documents)
            row["bytes"] += int(size)

    def keep(self, batch: pa.RecordBatch) -> None:
        """Documents that are left."""
        if batch.num_rows:
            sizes = np.diff(text_buffer(batch.column("text"))[1])
            self.count("out", batch.num_rows, int(sizes.sum()))
            count_values(self.sources, batch.column("source"))
            count_values(self.licenses, batch.column("license"))
            self.lengths.update(np.frexp(sizes.astype(np.float64))[1].tolist())

    def restart(self) -> None:
        """Another step follows: what is left will be counted anew."""
        self.rows["out"] = {"documents": 0, "bytes": 0}
        self.sources.clear()
        self.licenses.clear()
        self.lengths.clear()

    def value(self) -> dict[str, Any]:
        """As JSON values, for `add`."""
        return {
            "rows": self.rows,
            "sources": dict(self.sources),
            "licenses": dict(self.licenses),
            "lengths": {str(k): v for k, v in self.lengths.items()},
        }

    def add(self, value: dict[str, Any]) -> None:
        """Add another funnel's `value`."""
        for reason, row in value["rows"].items():
            self.count(reason, row["documents"], row["bytes"])
        self.sources.update(value["sources"])
        self.licenses.update(value["licenses"])
        self.lengths.update({int(k): v for k, v in value["lengths"].items()})

    def histogram(self) -> list[dict[str, int]]:
        """Documents by length, in bytes: from (included) to twice that."""
        return [{"from": 1 << (k - 1) if k else 0, "documents": self.lengths[k]} for k in sorted(self.lengths)]


def write_kept(folder: Path, shard: dict[str, Any], fates: dict[str, Any], examples: list[int]) -> Any:
    """Write the documents of a shard that are kept; the funnel, and the labels of example documents. fates: those of
    the shard's documents (`stored_array`).
    """
    fate, first, funnel, labels = stored_array.read(fates), shard["start"], Funnel(), {}
    start = first
    shown = set(examples)
    with DocumentWriter(folder) as writer:
        for batch in read_shard(Shard(**shard)):
            here = fate[start - first : start - first + batch.num_rows]
            sizes = np.diff(text_buffer(batch.column("text"))[1])
            funnel.count("in", batch.num_rows, int(sizes.sum()))
            for code, reason in REASONS.items():
                funnel.count(reason, int((here == code).sum()), int(sizes[here == code].sum()))
            for document in shown & set(range(start, start + batch.num_rows)):
                row = document - start
                labels[str(document)] = batch.column("url")[row].as_py() or batch.column("id")[row].as_py()
            left = batch if (here == KEPT).all() else batch.filter(pa.array(here == KEPT))
            writer.add_batch(left)
            funnel.keep(left)
            start += batch.num_rows
    if not writer.documents:
        (folder / "part-00000.parquet").unlink()
    return {"funnel": funnel.value(), "labels": labels}
