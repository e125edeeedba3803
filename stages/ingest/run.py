"""Run `ingest`: every raw file of the listing into documents, in order, by pieces that workers share (`work_units.py`,
`read_task.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.core.artifacts import FileEntry
from stages.core.context import Context
from stages.core.errors import InputError
from stages.core.reading import open_file
from stages.ingest import page_filters, read_task, work_units
from stages.ingest.read_task import EXAMPLES, Numbers
from stages.ingest.spec import Ingest, IngestConfig
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.corpus import commonest, link_parts, parts_of
from stages.lib.formats.sources import LISTING, RawFile, parsed_listing
from stages.lib.formats.uris import shown

Raw = Mapping[str, FileEntry]
"""The files of the listing's artifact, by path."""


def run(ctx: Context[IngestConfig]) -> None:
    """Write the documents; raise InputError when too little of the source is usable."""
    page_filters.check(ctx.node, ctx.config)
    raw = {entry.path: entry for entry in ctx.input("raw").entries()}
    files = work_units.expanded(_listing(raw))
    with Pool.of(ctx, Ingest.resources(ctx.config)) as pool:
        results = _sampled(ctx, pool, files, raw) if ctx.config.limit is not None else _whole(ctx, pool, files, raw)
    link_parts(ctx, "documents", (part for result in results for part in parts_of(result.files)))
    numbers = Numbers()
    for result in results:
        numbers.add(result.value)
    for reason, places in numbers.places.items():
        for place in places:
            ctx.log(f"skipped, {reason}: {place}", "warning")
    for address, count in sorted(numbers.served.items()):
        ctx.log(f"{count} files were read from {address}, since their own address could not be had", "warning")
    _refuse(ctx, numbers, files)
    ctx.describe(
        "documents",
        meta={
            "documents": numbers.documents,
            "text_bytes": numbers.text_bytes,
            "per_license": commonest([numbers.per_license]),
        },
    )
    ctx.stat(
        files=len(files),
        records=numbers.records,
        documents=numbers.documents,
        text_bytes=numbers.text_bytes,
        skipped=dict(sorted(numbers.skipped.items())),
        dropped={
            rule: {"documents": numbers.dropped[rule], "bytes": numbers.dropped_bytes[rule]}
            for rule in sorted(numbers.dropped)
        },
        languages=dict(numbers.languages.most_common(12)),
        lengths=[
            {"from": 1 << (k - 1) if k else 0, "documents": numbers.lengths[str(k)]}
            for k in sorted(map(int, numbers.lengths))
        ],
        per_source=dict(sorted(numbers.per_source.items())),
        served=dict(sorted(numbers.served.items())),
    )


def _listing(raw: Raw) -> list[RawFile]:
    if LISTING not in raw:
        raise InputError(f"{LISTING} cannot be read: it is not in the artifact")
    with open_file(raw[LISTING]) as stream:
        return parsed_listing(stream.read())


def _within(files: Sequence[RawFile], raw: Raw) -> dict[str, FileEntry]:
    """Those of the files that the listing's own artifact holds."""
    return {uri: raw[uri] for file in files for uri in (file.uri, *file.mirrors) if uri in raw}


def _task(config: IngestConfig, share: work_units.WorkUnit, raw: Raw) -> dict[str, Any]:
    task: dict[str, Any] = {
        "files": [_value(file) for file in share.files],
        "raw": _within(share.files, raw),
        "config": config.model_dump(mode="json", exclude={"workers"}),
    }
    return (
        task
        | ({"part": list(share.part), "size": share.size} if share.part else {})
        | ({"records": list(share.records)} if share.records else {})
    )


def _value(file: RawFile) -> dict[str, Any]:
    return file.model_dump(mode="json", exclude_defaults=True)


def _whole(ctx: Context[IngestConfig], pool: Pool, files: Sequence[RawFile], raw: Raw) -> list[Result]:
    """All of every file."""
    sizes: list[int | None] = [None] * len(files)
    asked = [n for n, file in enumerate(files) if work_units.local(file)]
    far = [n for n, file in enumerate(files) if not work_units.local(file) and file.format != "code"]
    asked += far if len(far) <= work_units.MEASURED else []
    batches = [asked[n : n + work_units.TOGETHER_FILES] for n in range(0, len(asked), work_units.TOGETHER_FILES)]
    tasks = [
        {"files": [_value(files[n]) for n in batch], "raw": _within([files[n] for n in batch], raw)}
        for batch in batches
    ]
    for batch, result in zip(batches, pool.map("measure", work_units.measure, tasks), strict=True):
        for number, size in zip(batch, result.value, strict=True):
            sizes[number] = size
    work = work_units.cut(files, sizes)
    return pool.map("read", read_task.read, [_task(ctx.config, share, raw) for share in work], ctx.progress)


def _sampled(ctx: Context[IngestConfig], pool: Pool, files: Sequence[RawFile], raw: Raw) -> list[Result]:
    """`limit` records, over the files as `work_units.sample` says; in the order of the files."""
    assert ctx.config.limit is not None
    by_first: dict[int, Result] = {}
    rounds = work_units.sample(files, ctx.config.limit)
    batch = next(rounds, None)
    while batch is not None:
        work = work_units.together(files, batch)
        tasks = [_task(ctx.config, share, raw) for _, share in work]
        results = pool.map(f"sample-{len(by_first)}", read_task.read, tasks, ctx.progress)
        by_first |= dict(zip((number for number, _ in work), results, strict=True))
        try:
            batch = rounds.send(sum(result.value["records"] for result in results))
        except StopIteration:
            batch = None
    return [by_first[number] for number in sorted(by_first)]


def _refuse(ctx: Context[IngestConfig], numbers: Numbers, files: Sequence[RawFile]) -> None:
    """Raise InputError when nothing, or too little, is usable."""
    bad = sum(numbers.skipped.values())
    reasons = ", ".join(
        f"{reason}: {count}, first {numbers.places[reason][0]}" for reason, count in sorted(numbers.skipped.items())
    )
    if numbers.documents == 0:
        empty = (
            f"no record in {', '.join(shown(file.uri) for file in files[:EXAMPLES])}"
            if files
            else "the listing is empty"
        )
        rules = ", ".join(f"{rule}: {count}" for rule, count in numbers.dropped.most_common())
        raise InputError(f"{ctx.node}: no usable document in {len(files)} raw files ({reasons or rules or empty})")
    if bad > ctx.config.max_bad_fraction * numbers.records:
        raise InputError(
            f"{ctx.node}: {bad} of {numbers.records} records are unusable ({reasons}), more than max_bad_fraction "
            f"{ctx.config.max_bad_fraction}: mend the source, or raise the limit"
        )
