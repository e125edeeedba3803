"""Run `ingest`: every raw file of the listing, in order, into documents."""

from __future__ import annotations

import hashlib
from collections import Counter

from resiliparse.parse.lang import detect_fast

from stages.core.contracts import Context, InputError
from stages.formats.documents import DocumentWriter
from stages.formats.sources import read_listing
from stages.ingest.heuristics import cleaned
from stages.ingest.readers import READERS, Bad
from stages.ingest.spec import IngestConfig

EXAMPLES = 3
"""Places that are named for each reason; the rest is counted."""
LANGUAGE_EVERY, LANGUAGE_CHARACTERS = 8, 1000
"""The language is guessed of every eighth document's beginning, for the statistics."""


def run(ctx: Context[IngestConfig]) -> None:
    """Write the documents; raise InputError when too little of the source is usable."""
    raw = ctx.input("raw")
    listing = read_listing(raw.path)
    skipped: Counter[str] = Counter()
    first: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    dropped_bytes: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    filtering = ctx.config.heuristics == "refinedweb"
    records = 0
    per_source: Counter[str] = Counter()
    with DocumentWriter(ctx.output("documents")) as writer:
        for index, file in enumerate(listing):
            for number, record in enumerate(READERS[file.format](file, raw.path, ctx.config)):
                records += 1
                if isinstance(record, Bad):
                    skipped[record.reason] += 1
                    first.setdefault(record.reason, record.place)
                    if skipped[record.reason] <= EXAMPLES:
                        ctx.log(f"skipped, {record.reason}: {record.place}", "warning")
                    continue
                text, rule = cleaned(record.text, ctx.config.language_model) if filtering else (record.text, None)
                lengths[len(text).bit_length()] += 1
                if rule:
                    dropped[rule] += 1
                    dropped_bytes[rule] += len(record.text.encode())
                    continue
                if writer.documents % LANGUAGE_EVERY == 0:
                    languages[detect_fast(text[:LANGUAGE_CHARACTERS])[0]] += 1
                identity = hashlib.sha256(f"{file.uri}\0{number}".encode()).hexdigest()[:24]
                writer.add(identity, text, file.source, record.url, record.license or file.license)
                per_source[file.source] += 1
                if ctx.config.limit is not None and writer.documents >= ctx.config.limit:
                    break
            ctx.progress(index + 1, len(listing), "files")
            if ctx.config.limit is not None and writer.documents >= ctx.config.limit:
                break
    bad = sum(skipped.values())
    reasons = ", ".join(f"{reason}: {count}, first {first[reason]}" for reason, count in sorted(skipped.items()))
    if writer.documents == 0:
        empty = f"no record in {', '.join(file.uri for file in listing[:EXAMPLES])}" if listing else "the listing is empty"
        rules = ", ".join(f"{rule}: {count}" for rule, count in dropped.most_common())
        raise InputError(f"{ctx.node}: no usable document in {len(listing)} raw files ({reasons or rules or empty})")
    if bad > ctx.config.max_bad_fraction * records:
        raise InputError(
            f"{ctx.node}: {bad} of {records} records are unusable ({reasons}), more than max_bad_fraction "
            f"{ctx.config.max_bad_fraction}: mend the source, or raise the limit"
        )
    ctx.describe("documents", meta={"documents": writer.documents, "text_bytes": writer.text_bytes})
    ctx.stat(
        files=len(listing),
        records=records,
        documents=writer.documents,
        text_bytes=writer.text_bytes,
        skipped=dict(sorted(skipped.items())),
        dropped={rule: {"documents": dropped[rule], "bytes": dropped_bytes[rule]} for rule in sorted(dropped)},
        languages=dict(languages.most_common(12)),
        lengths=[{"from": 1 << (k - 1) if k else 0, "documents": lengths[k]} for k in sorted(lengths)],
        per_source=dict(sorted(per_source.items())),
    )
