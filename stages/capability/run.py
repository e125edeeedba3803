"""Run `capability`: gather the rows of every benchmark, keep train and test apart, write documents and suite."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator

from stages.capability.benchmarks import DATA_SETS, BenchmarkData, Row, fingerprints, render
from stages.capability.spec import CapabilityConfig
from stages.core.context import Context
from stages.core.errors import InputError
from stages.lib.formats.corpus import commonest
from stages.lib.formats.documents import DocumentWriter
from stages.lib.formats.reports import TOY
from stages.lib.formats.suites import DataSet, Suite, split_fingerprints, write_data_set, write_suite


def run(ctx: Context[CapabilityConfig]) -> None:
    """Write `train` and `suite`."""
    config = ctx.config
    data_sets = [DATA_SETS[name] for name in config.benchmarks]
    if config.origin == "machine":
        from stages.capability import synthetic as source
    else:
        from stages.capability import hub as source  # imports `datasets`
    gathered = source.gather(ctx, data_sets)
    train_on = [DATA_SETS[name] for name in config.train_on or config.benchmarks]
    seen = {mark for data in gathered for row in data.test for mark in _marks(data.id, row)}
    kept: list[tuple[BenchmarkData, str]] = []
    removed: dict[str, dict[str, int]] = {}  # by name shown
    overlap = 0
    for data in gathered:
        if data.id not in train_on:
            continue
        clean = [row for row in data.train if seen.isdisjoint(_marks(data.id, row))]
        texts = dict.fromkeys(render(data.id, row) for row in clean)
        removed[shown(data.id, config.origin)] = {
            "shared with test": len(data.train) - len(clean),
            "repeated": len(clean) - len(texts),
        }
        overlap += sum(not seen.isdisjoint(_marks(data.id, row)) for row in clean)
        kept.extend((data, text) for text in texts)
        if not texts:
            raise InputError(
                f"{ctx.node}: all {len(data.train)} training questions of {data.id} are in the test splits too: none is"
                " left"
            )
    random.Random(config.seed).shuffle(kept)
    with DocumentWriter(ctx.output("train")) as writer:
        for number, (data, text) in enumerate(kept):
            writer.add(
                f"{data.id}/{number}",
                text,
                source=shown(data.id, config.origin),
                url=f"benchmark:{data.id}",
                license=data.license,
            )
    _write_suite(ctx, gathered, overlap)
    names = sorted(shown(id, config.origin).rpartition("/")[2] for id in train_on)
    shares = {
        "per_source": commonest([Counter(shown(data.id, config.origin) for data, _ in kept)]),
        "per_license": commonest([Counter(data.license for data, _ in kept)]),
    }
    meta = {"documents": len(kept), "text_bytes": writer.text_bytes, "benchmarks": names, **shares}
    ctx.describe("train", meta=meta)
    ctx.stat(
        train_questions={shown(data.id, config.origin): sum(one is data for one, _ in kept) for data in gathered},
        test_questions={shown(data.id, config.origin): len(data.test) for data in gathered},
        removed=removed,
        train_test_overlap=overlap,
        train_bytes=writer.text_bytes,
    )


def shown(id: str, origin: str) -> str:
    """What a person is shown: questions that were made in a benchmark's schema never carry its bare name."""
    return f"{TOY}{id.partition('/')[2]}" if origin == "machine" else id


def _marks(id: str, row: Row) -> Iterator[bytes]:
    """The row's fingerprints, 8 bytes each: the training split of MMLU alone has ten million."""
    for text in fingerprints(id, row):
        yield hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _write_suite(ctx: Context[CapabilityConfig], gathered: Iterable[BenchmarkData], overlap: int) -> None:
    folder = ctx.output("suite")
    listing = []
    for data in gathered:
        rows = write_data_set(folder, data.id, data.configs)
        listing.append(
            DataSet(
                id=data.id,
                origin=ctx.config.origin,
                revision=data.revision,
                license=data.license,
                rows=rows,
                fingerprint=split_fingerprints(data.configs),
            )
        )
    write_suite(folder, Suite(data_sets=tuple(listing), train_test_overlap=overlap))
    ctx.describe("suite", meta={"origin": ctx.config.origin, "data_sets": len(listing)})
