"""Run `capability`: gather the rows of every benchmark, keep train and test apart, write documents and suite."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator

from stages.capability.benchmarks import DATA_SETS, BenchmarkData, Row, fingerprints, render
from stages.capability.spec import CapabilityConfig
from stages.core.contracts import Context, InputError
from stages.formats.documents import DocumentWriter
from stages.formats.suites import DataSet, Suite, write_data_set, write_suite


def run(ctx: Context[CapabilityConfig]) -> None:
    """Write `train` and `suite`."""
    config = ctx.config
    wanted = [DATA_SETS[name] for name in config.benchmarks]
    if config.origin == "machine":
        from stages.capability import machine as source
    else:
        from stages.capability import hub as source  # imports `datasets`
    gathered = source.gather(ctx, wanted)
    train_on = [DATA_SETS[name] for name in config.train_on or config.benchmarks]
    seen = {mark for data in gathered for row in data.test for mark in _marks(data.id, row)}
    kept: list[tuple[BenchmarkData, str]] = []
    removed: dict[str, dict[str, int]] = {}
    overlap = 0
    for data in gathered:
        if data.id not in train_on:
            continue
        clean = [row for row in data.train if seen.isdisjoint(_marks(data.id, row))]
        texts = dict.fromkeys(render(data.id, row) for row in clean)
        removed[data.id] = {"shared with test": len(data.train) - len(clean), "repeated": len(clean) - len(texts)}
        overlap += sum(not seen.isdisjoint(_marks(data.id, row)) for row in clean)
        kept.extend((data, text) for text in texts)
        if not texts:
            raise InputError(f"{ctx.node}: all {len(data.train)} training questions of {data.id} are in the test splits too: none is left")
    random.Random(config.seed).shuffle(kept)
    with DocumentWriter(ctx.output("train")) as writer:
        for number, (data, text) in enumerate(kept):
            writer.add(f"{data.id}/{number}", text, source=data.id, url=f"benchmark:{data.id}", license=data.license)
    _write_suite(ctx, gathered, overlap)
    names = sorted(id.partition("/")[2] for id in train_on)
    ctx.describe("train", meta={"documents": len(kept), "text_bytes": writer.text_bytes, "benchmarks": names})
    ctx.stat(
        train_questions={data.id: sum(one is data for one, _ in kept) for data in gathered},
        test_questions={data.id: len(data.test) for data in gathered},
        removed=removed,
        train_test_overlap=overlap,
        train_bytes=writer.text_bytes,
    )


def _marks(id: str, row: Row) -> Iterator[bytes]:
    """The row's fingerprints, 8 bytes each: the training split of MMLU alone has ten million."""
    for text in fingerprints(id, row):
        yield hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _write_suite(ctx: Context[CapabilityConfig], gathered: Iterable[BenchmarkData], overlap: int) -> None:
    folder = ctx.output("suite")
    listing = []
    for data in gathered:
        rows = write_data_set(folder, data.id, data.configs)
        listing.append(DataSet(id=data.id, origin=ctx.config.origin, revision=data.revision, license=data.license, rows=rows))
    write_suite(folder, Suite(data_sets=tuple(listing), train_test_overlap=overlap))
    ctx.describe("suite", meta={"origin": ctx.config.origin, "data_sets": len(listing)})
