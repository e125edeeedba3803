"""Run `image_data`: write the conversations with their images, and the suite, by tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from stages.core.context import Context
from stages.core.errors import ConfigError
from stages.image_data import listing, synthetic
from stages.image_data.spec import ImageData, ImageDataConfig
from stages.lib.data.workers import Pool
from stages.lib.formats.suites import DataSet, Suite, write_suite
from stages.lib.vision.benchmarks import BENCHMARKS


def run(ctx: Context[ImageDataConfig]) -> None:
    """Write `train` and `suite`."""
    with Pool.of(ctx, ImageData.resources(ctx.config)) as pool:
        if ctx.config.origin == "machine":
            _synthetic(ctx, pool)
        else:
            _from_listing(ctx, pool)


def _synthetic(ctx: Context[ImageDataConfig], pool: Pool) -> None:
    kinds, images = synthetic.write_train(ctx, pool)
    _finish(ctx, kinds, images, synthetic.write_suite(ctx, pool))
    ctx.stat(dense_captions=round(kinds["caption"] / kinds.total(), 4), train_test_overlap=0)


def _from_listing(ctx: Context[ImageDataConfig], pool: Pool) -> None:
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
    counts = listing.write_train(ctx, pool)
    for reason, number in counts.dropped.most_common():
        ctx.log(f"{number} rows left out, {reason}; the first: {counts.first[reason]}", "warning")
    listing.judge(ctx, counts)
    _finish(ctx, counts.kinds, counts.images, listing.write_suite(ctx, pool))
    ctx.stat(
        left_out=dict(counts.dropped.most_common()),
        image_remarks=dict(counts.remarks.most_common()),
        first_left_out=counts.first,
    )


def _finish(
    ctx: Context[ImageDataConfig], kinds: Counter[str], images: int, suite: Mapping[str, tuple[int, str]]
) -> None:
    """The suite's listing, and what both outputs hold. suite: questions and fingerprint of each benchmark."""
    origin = "machine" if ctx.config.origin == "machine" else "hub"
    sets = []
    for name, (count, fingerprint) in suite.items():
        split = BENCHMARKS[name].split
        rows, sums = {"default": {split: count}}, {"default": {split: fingerprint}}
        sets.append(DataSet(id=name, origin=origin, rows=rows, fingerprint=sums))
    write_suite(ctx.output("suite"), Suite(data_sets=tuple(sets), train_test_overlap=0))
    questions = {name: count for name, (count, _) in suite.items()}
    ctx.describe("train", meta={"rows": kinds.total(), "images": images, "kinds": dict(kinds)})
    ctx.describe("suite", meta={"origin": ctx.config.origin, "questions": questions})
    ctx.stat(rows=kinds.total(), images=images, rows_by_kind=dict(sorted(kinds.items())), questions=questions)
