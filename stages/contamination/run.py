"""Run `contamination`: index every item of every suite, scan the training data once, write what overlaps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stages.contamination import merging
from stages.contamination.index import Table, Words, make_table, read_words, save
from stages.contamination.items import Split, read_image_splits, read_splits
from stages.contamination.scan import scan
from stages.contamination.spec import TRAINING, Contamination, ContaminationConfig
from stages.contamination.training_texts import tasks_of
from stages.core.context import Context
from stages.core.errors import InputError
from stages.lib.data.stored_array import store_files
from stages.lib.data.workers import Pool, Result
from stages.lib.formats.overlap import (
    ItemOverlap,
    Match,
    Overlap,
    OverlapRule,
    SplitOverlap,
    TrainingData,
    write_items,
    write_overlap,
)

EXACT_WORDS = 10
"""Words at the beginning of a span that may not differ (Llama 2, appendix A.6)."""


def run(ctx: Context[ContaminationConfig]) -> None:
    """Write the overlap; raise InputError when there is nothing to look for."""
    splits = _splits(ctx)
    words = read_words(text for split in splits for text in split.texts)
    rule = _rule(ctx.config)
    tables, anchors = _tables(ctx.config, words)
    with Pool.of(ctx, Contamination.resources(ctx.config)) as pool:
        training, finds, equal = _scan(ctx, pool, words, tables, anchors, rule)
    common = merging.common_runs(finds, rule.common)
    matches: dict[int, list[Match]] = defaultdict(list)
    for node, held in finds.items():
        for item, match in (
            merging.run_matches(node, held, common, words, tables)
            if rule.name == "gpt3"
            else merging.span_matches(node, held, words)
        ):
            matches[item].append(match)
    hidden = set(words.item[merging.places_of(common, tables)[0]].tolist()) - matches.keys()
    overlap = Overlap(
        rule=rule,
        runs=sum(len(table.hashes) for table in tables),
        ignored_runs=len(common),
        equal_hashes=equal,
        training=training,
        splits=tuple(_write(Path(ctx.output("overlap")), splits, words, rule, matches, hidden)),
    )
    write_overlap(Path(ctx.output("overlap")), overlap)
    _tell(ctx, overlap)


def _splits(ctx: Context[ContaminationConfig]) -> list[Split]:
    """The splits of all suites, each once: suites may share a data set, whose items then are the same."""
    by_place: dict[tuple[str, str, str], Split] = {}
    for suite in ctx.inputs("suites"):
        for split in read_splits(Path(suite.path), ctx.config.left_out_splits):
            place = (split.data_set, split.config, split.split)
            if place in by_place and by_place[place].texts != split.texts:
                raise InputError(
                    f"{ctx.node}: two suites hold different items as {'/'.join(place)} (one of them from"
                    f" {suite.node}): wire one of them"
                )
            by_place.setdefault(place, split)
    for suite in ctx.inputs("image_suites"):
        for split in read_image_splits(Path(suite.path)):
            by_place.setdefault((split.data_set, split.config, split.split), split)
    splits = [by_place[place] for place in sorted(by_place)]
    if not any(split.texts for split in splits):
        raise InputError(
            f"{ctx.node}: the suites hold no item outside of {', '.join(ctx.config.left_out_splits)}: wire a suite"
            " with a split that is scored"
        )
    return splits


def _rule(config: ContaminationConfig) -> OverlapRule:
    if config.rule == "llama2":
        return OverlapRule(name="llama2", run=config.length, min_words=config.length, common=None, skips=config.skips)
    return OverlapRule(name="gpt3", run=config.length, min_words=config.min_words, common=config.common, skips=0)


def _tables(config: ContaminationConfig, words: Words) -> tuple[tuple[Table, Table], tuple[int, int]]:
    """The runs to look for, and the short items to look for as a whole (none with `llama2`); the words of their
    anchors.
    """
    if config.rule == "llama2":
        anchor = min(EXACT_WORDS, config.length)
        return (make_table(words, anchor, config.length, None), make_table(words, 1, 1, 0)), (anchor, 1)
    short = make_table(words, config.min_words, config.min_words, config.length - 1)
    return (make_table(words, config.length, config.length, None), short), (config.length, config.min_words)


def _scan(
    ctx: Context[ContaminationConfig],
    pool: Pool,
    words: Words,
    tables: tuple[Table, Table],
    anchors: tuple[int, int],
    rule: OverlapRule,
) -> tuple[tuple[TrainingData, ...], dict[str, merging.NodeFinds], int]:
    """Scan all training data: what was read, what each node holds, and how many equal hashes meant nothing."""

    def write(folder: Path) -> None:
        for name, arrays in (("words", words), ("runs", tables[0]), ("short", tables[1])):
            save(folder, name, arrays)

    index = store_files(pool, "index", write)
    how = {"anchors": anchors, "least": rule.run, "skips": rule.skips if rule.name == "llama2" else None}
    training, shards_of_node, equal = [], defaultdict[str, list[Result]](list), 0
    for kind in TRAINING:
        for number, source in enumerate(ctx.inputs(kind)):
            shards = tasks_of(kind, source.node, source.entries())
            tasks = [{"shard": shard, "kind": kind, "index": index, "rule": how} for shard in shards]
            results = pool.map(f"{kind}-{number}", scan, tasks, ctx.progress)
            total = Counter[str]()
            for result in results:
                total.update(result.value)
            shards_of_node[source.node] += results
            equal += total["equal_hashes"]
            counts = {name: total[name] for name in ("documents", "bytes", "words")}
            training.append(TrainingData(node=source.node, kind=kind, digest=source.manifest.digest, **counts))
    return tuple(training), {node: merging.gather(each) for node, each in shards_of_node.items()}, equal


def _write(
    folder: Path,
    splits: Iterable[Split],
    words: Words,
    rule: OverlapRule,
    matches: dict[int, list[Match]],
    hidden: set[int],
) -> Iterable[SplitOverlap]:
    """Write the items, and give the numbers of each split."""
    sizes = np.diff(words.items).tolist()
    rows: dict[str, list[ItemOverlap]] = defaultdict(list)
    first = 0
    for split in splits:
        mine = [
            ItemOverlap(
                config=split.config,
                split=split.split,
                item=number,
                mark=mark,
                words=sizes[item],
                skipped=sizes[item] < rule.min_words,
                only_common=item in hidden,
                matches=tuple(matches.get(item, ())),
            )
            for number, (item, mark) in enumerate(enumerate(split.marks, first))
        ]
        flagged = Counter(match.node for row in mine for match in row.matches)
        first += len(split.texts)
        rows[split.data_set] += mine
        yield SplitOverlap(
            data_set=split.data_set,
            config=split.config,
            split=split.split,
            toy=split.origin == "machine",
            text=split.fields,
            items=len(split.texts),
            skipped=sum(row.skipped for row in mine),
            only_common=sum(row.only_common for row in mine),
            flagged=dict(sorted(flagged.items())),
            any=sum(bool(row.matches) for row in mine),
        )
    for data_set, every in rows.items():
        write_items(folder, data_set, every)


def _tell(ctx: Context[ContaminationConfig], overlap: Overlap) -> None:
    splits: list[SplitOverlap] = list(overlap.splits)
    items, skipped, flagged = (sum(getattr(s, name) for s in splits) for name in ("items", "skipped", "any"))
    read = sum(t.bytes for t in overlap.training)
    summary: dict[str, Any] = {"items": items, "skipped": skipped, "flagged": flagged, "bytes": read}
    ctx.describe("overlap", meta={"rule": overlap.rule.name, **summary})
    ctx.stat(
        **summary,
        only_common=sum(s.only_common for s in splits),
        runs=overlap.runs,
        ignored_runs=overlap.ignored_runs,
        training={t.node: {"documents": t.documents, "bytes": t.bytes} for t in overlap.training},
    )
    ctx.log(
        f"{flagged:,} of {items:,} items overlap with the training data ({overlap.rule.name}, {overlap.rule.run} words;"
        f" {skipped:,} are too short to say), {read:,} bytes of text read once"
    )
