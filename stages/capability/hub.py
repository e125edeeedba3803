"""The benchmarks themselves: from the Hugging Face hub, or from a mirror of it on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from stages.capability.benchmarks import BenchmarkData
from stages.capability.spec import CapabilityConfig
from stages.core.context import Context
from stages.core.errors import InputError
from stages.lib.data.hub import HubDataSet, table

#: {data set: (configurations, split to train on, split that is scored)}; None: every configuration is a subject (MMLU).
LAYOUT: Mapping[str, tuple[tuple[str, ...] | None, str, str]] = {
    "allenai/ai2_arc": (("ARC-Easy", "ARC-Challenge"), "train", "test"),
    "Rowan/hellaswag": (("default",), "train", "validation"),
    "baber/piqa": (("default",), "train", "validation"),
    "allenai/winogrande": (("winogrande_xl",), "train", "validation"),
    "cais/mmlu": (None, "train", "test"),
}
AUXILIARY = "auxiliary_train"
"""MMLU's training split is a configuration of its own, whose rows are nested under 'train' (cais/mmlu)."""


def gather(ctx: Context[CapabilityConfig], data_sets: Iterable[str]) -> list[BenchmarkData]:
    """Every split of the data sets. Raises InputError naming the data set that cannot be had."""
    config, out = ctx.config, []
    for id in data_sets:
        source = HubDataSet(
            id,
            ctx.scratch / "datasets",
            mirror=config.mirror,
            revision=config.revisions.get(id),
            where=f"{ctx.node}.mirror",
        )
        configs, train_split, scored = LAYOUT[id]
        data = BenchmarkData(id, revision=source.revision, license=source.license)
        for name in configs or [name for name in source.configs() if name not in ("all", AUXILIARY)]:
            data.configs[name] = splits = _tables(source, name)
            needed = (scored, train_split) if configs else (scored,)
            if missing := [split for split in needed if split not in splits]:
                raise InputError(
                    f"data set {id}, configuration {name}, has no split '{missing[0]}', only {', '.join(splits)}"
                )
            data.test.extend(splits[scored].to_pylist())
            if configs:
                data.train.extend(splits[train_split].to_pylist())
        if configs is None:
            rows = _tables(source, AUXILIARY)["train"].to_pylist()
            data.train.extend(row.get("train") or row for row in rows)
        out.append(data)
        ctx.progress(len(out), unit="data sets")
    return out


def _tables(source: HubDataSet, config: str) -> dict[str, pa.Table]:
    return {split: table(rows) for split, rows in source.splits(config).items()}
