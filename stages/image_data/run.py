"""Run `image_data`: write the conversations with their images, and the suite."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stages.core.context import Context
from stages.core.errors import ConfigError
from stages.image_data import listing, synthetic
from stages.image_data.spec import ImageDataConfig
from stages.lib.formats.suites import DataSet, Suite, write_suite
from stages.lib.vision.benchmarks import BENCHMARKS, files_fingerprint
from stages.lib.vision.conversations import ImageWriter, write_rows


def run(ctx: Context[ImageDataConfig]) -> None:
    """Write `train` and `suite`."""
    if ctx.config.origin == "machine":
        _synthetic(ctx)
    else:
        _from_listing(ctx)


def _synthetic(ctx: Context[ImageDataConfig]) -> None:
    config = ctx.config
    tests = synthetic.test_scenes(config)
    avoid = frozenset[object](scene.layout for scene in tests)
    kinds: Counter[str] = Counter()
    with ImageWriter(ctx.output("train")) as writer:
        made = synthetic.rows(config, avoid, writer)
        count = write_rows(ctx.output("train"), (row for kind, row in made if not kinds.update([kind])))
    questions = synthetic.write_suite(ctx.output("suite"), config, tests)
    _finish(ctx, count, kinds, len(writer.names), questions)
    ctx.stat(dense_captions=round(kinds["caption"] / count, 4), train_test_overlap=0)


def _from_listing(ctx: Context[ImageDataConfig]) -> None:
    config = ctx.config
    if not any(file.kind in config.train_on for file in config.sources):
        raise ConfigError(
            f"{ctx.node}.sources lists no file of the kinds to train on ({', '.join(config.train_on)}): list LLaVA's"
            f" JSON, or set {ctx.node}.origin = 'machine'"
        )
    if not config.benchmarks:
        raise ConfigError(
            f"{ctx.node}.benchmarks is empty: name the folders of at least one of {', '.join(BENCHMARKS)}"
        )
    counts, kinds = listing.Counts(), Counter[str]()
    with ImageWriter(ctx.output("train")) as writer:
        made = listing.rows(ctx, counts, writer)
        count = write_rows(ctx.output("train"), (row for kind, row in made if not kinds.update([kind])))
    for reason, number in counts.dropped.most_common():
        ctx.log(f"{number} rows left out, {reason}; the first: {counts.first[reason]}", "warning")
    listing.judge(ctx, counts)
    folder = Path(ctx.output("suite"))
    wanted = sorted(config.benchmarks.items(), key=lambda item: list(BENCHMARKS).index(item[0]))
    questions: dict[str, int] = {name: listing.import_benchmark(ctx, name, files, folder) for name, files in wanted}
    _finish(ctx, count, kinds, len(writer.names), questions)
    ctx.stat(
        left_out=dict(counts.dropped.most_common()),
        image_remarks=dict(counts.remarks.most_common()),
        first_left_out=counts.first,
    )


def _finish(
    ctx: Context[ImageDataConfig], rows: int, kinds: Counter[str], images: int, questions: dict[str, int]
) -> None:
    """The suite's listing, and what both outputs hold."""
    origin = "machine" if ctx.config.origin == "machine" else "hub"
    folder, sets = Path(ctx.output("suite")), []
    for name, count in questions.items():
        split = BENCHMARKS[name].split
        fingerprint = {"default": {split: files_fingerprint(folder, name)}}
        sets.append(DataSet(id=name, origin=origin, rows={"default": {split: count}}, fingerprint=fingerprint))
    write_suite(ctx.output("suite"), Suite(data_sets=tuple(sets), train_test_overlap=0))
    ctx.describe("train", meta={"rows": rows, "images": images, "kinds": dict(kinds)})
    ctx.describe("suite", meta={"origin": ctx.config.origin, "questions": questions})
    ctx.stat(rows=rows, images=images, rows_by_kind=dict(sorted(kinds.items())), questions=questions)
