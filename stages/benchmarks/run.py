"""Run `benchmarks`: mirror one data set after another, and list what was mirrored with the SHA-256 of every split."""

from __future__ import annotations

import shutil
from pathlib import Path

from stages.benchmarks import readers, toy
from stages.benchmarks.spec import BenchmarksConfig, DataSetSource
from stages.core.context import Context
from stages.core.errors import InputError, Preempted
from stages.lib.formats.reports import TOY
from stages.lib.formats.suites import (
    LISTING,
    DataSet,
    Suite,
    data_set_sha256,
    read_suite,
    split_fingerprints,
    write_data_set,
    write_suite,
)

FETCHED = ("hub", "store")
"""Origins that a broken attempt does not fetch again."""


def run(ctx: Context[BenchmarksConfig]) -> None:
    """Write `suite`."""
    folder = Path(ctx.output("suite"))
    mirrored = _resumed(ctx, folder)
    sources = sorted(ctx.config.data_sets.items())
    for number, (id, source) in enumerate(sources):
        ctx.progress(number, len(sources), "data sets")
        if id in mirrored:
            continue
        if ctx.stopping:
            raise Preempted(f"stopped at data set {number} of {len(sources)}; the next run goes on from there")
        mirrored[id] = _mirror(ctx, folder, id, source)
        write_suite(folder, Suite(data_sets=tuple(mirrored[id] for id in sorted(mirrored))))
        if source.origin in FETCHED and number + 1 < len(sources):
            ctx.checkpoints.save(number + 1, folder)
    _tell(ctx, list(mirrored.values()))


def _resumed(ctx: Context[BenchmarksConfig], folder: Path) -> dict[str, DataSet]:
    """The data sets that an earlier attempt mirrored, put into the output."""
    checkpoint = ctx.checkpoints.latest()
    if checkpoint is None:
        return {}
    done = read_suite(checkpoint[1]).data_sets
    for data_set in done:
        shutil.copytree(Path(checkpoint[1]) / data_set.id, folder / data_set.id)
    shutil.copyfile(Path(checkpoint[1]) / LISTING, folder / LISTING)
    return {data_set.id: data_set for data_set in done}


def _mirror(ctx: Context[BenchmarksConfig], folder: Path, id: str, source: DataSetSource) -> DataSet:
    where = f'{ctx.node}.data_sets."{id}"'
    if source.origin == "machine":
        read = readers.DataSetRows(toy.make(where, id, source, ctx.config))
    else:
        read = readers.read(where, id, source, Path(ctx.scratch))
    empty = [f"{config}/{split}" for config, of in read.configs.items() for split, rows in of.items() if not len(rows)]
    if empty:
        raise InputError(f"{where}: {', '.join(empty)} of data set {id} holds no row")
    fingerprint = split_fingerprints(read.configs)
    expected = source.sha256 or readers.PACKAGE_ROWS.get((id, read.revision or ""))
    if source.origin != "machine" and expected not in (None, sha256 := data_set_sha256(fingerprint)):
        raise InputError(
            f"{where}: the SHA-256 of its content is {sha256}, not {expected}: it is not the data set that was"
            " declared; mirror it anew, or correct sha256"
        )
    rows = write_data_set(folder, id, read.configs)
    ctx.log(f"{id}: {sum(sum(of.values()) for of in rows.values())} rows from {source.uri or source.origin}")
    return DataSet(
        id=id,
        origin=source.origin,
        revision=read.revision,
        license=read.license,
        rows=rows,
        fingerprint=fingerprint,
    )


def _tell(ctx: Context[BenchmarksConfig], mirrored: list[DataSet]) -> None:
    """What a person is shown: questions that were made in a data set's schema never carry its bare name."""

    def shown(data_set: DataSet) -> str:
        return f"{TOY}{data_set.id.partition('/')[2]}" if data_set.origin == "machine" else data_set.id

    origins = sorted({data_set.origin for data_set in mirrored})
    ctx.describe("suite", meta={"origin": ", ".join(origins), "data_sets": len(mirrored)})
    ctx.stat(
        rows={shown(d): sum(sum(splits.values()) for splits in d.rows.values()) for d in mirrored},
        revisions={shown(d): d.revision for d in mirrored if d.revision},
        sha256={shown(d): d.sha256 for d in mirrored},
    )
