"""The benchmarks themselves: from the Hugging Face hub, or from a mirror of it on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import yaml
from huggingface_hub import HfApi, hf_hub_download

from stages.capability.benchmarks import BenchmarkData
from stages.capability.spec import CapabilityConfig
from stages.core.contracts import ConfigError, Context, InputError

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


class Source:
    """One data set, on the hub at a fixed commit, or in the mirror."""

    def __init__(self, ctx: Context[CapabilityConfig], id: str) -> None:
        self.id, self.cache = id, str(ctx.scratch / "datasets")
        self.folder = Path(ctx.config.mirror) / id if ctx.config.mirror is not None else None
        self.revision = ctx.config.revisions.get(id)
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"{ctx.node}.mirror = '{ctx.config.mirror}' has no folder {id}: mirror it, or leave it out of {ctx.node}.benchmarks")
        try:
            if self.folder is None:  # a branch moves: what it points at is fixed, and recorded
                self.revision = HfApi().dataset_info(id, revision=self.revision).sha
            self.license = _license(self._card())
        except Exception as error:  # huggingface_hub raises many kinds, from offline mode to HTTP errors
            raise self._unavailable("", error) from error

    def _card(self) -> str:
        if self.folder is None:
            return Path(hf_hub_download(self.id, "README.md", repo_type="dataset", revision=self.revision, cache_dir=self.cache)).read_text("utf-8")
        card = self.folder / "README.md"
        return card.read_text("utf-8") if card.is_file() else ""

    def _unavailable(self, config: str, error: Exception) -> InputError:
        what = f"data set {self.id}{config and ', configuration '}{config}"
        return InputError(f"{what} cannot be had{' from the mirror' if self.folder else ''}: {(str(error).splitlines() or [type(error).__name__])[0]}")

    def configs(self) -> list[str]:
        """The names of its configurations."""
        try:
            return sorted(datasets.get_dataset_config_names(str(self.folder or self.id), revision=self.revision if not self.folder else None))
        except Exception as error:  # as above
            raise self._unavailable("", error) from error

    def splits(self, config: str) -> dict[str, pa.Table]:
        """All splits of one configuration, in the schema of the hub."""
        name = None if config == "default" else config
        revision = None if self.folder else self.revision
        try:
            found: Any = datasets.load_dataset(str(self.folder or self.id), name, revision=revision, cache_dir=self.cache)
            return {str(split): rows.with_format("arrow")[:] for split, rows in found.items()}
        except Exception as error:  # as above
            raise self._unavailable(config, error) from error


def gather(ctx: Context[CapabilityConfig], wanted: Iterable[str]) -> list[BenchmarkData]:
    """Every split of the wanted data sets. Raises InputError naming the data set that cannot be had."""
    datasets.disable_progress_bars()
    out = []
    for id in wanted:
        source = Source(ctx, id)
        configs, train_split, scored = LAYOUT[id]
        data = BenchmarkData(id, revision=source.revision, license=source.license)
        for config in configs or [name for name in source.configs() if name not in ("all", AUXILIARY)]:
            data.configs[config] = splits = source.splits(config)
            needed = (scored, train_split) if configs else (scored,)
            if missing := [name for name in needed if name not in splits]:
                raise InputError(f"data set {id}, configuration {config}, has no split '{missing[0]}', only {', '.join(splits)}")
            data.test.extend(splits[scored].to_pylist())
            if configs:
                data.train.extend(splits[train_split].to_pylist())
        if configs is None:
            rows = source.splits(AUXILIARY)["train"].to_pylist()
            data.train.extend(row.get("train") or row for row in rows)
        out.append(data)
        ctx.progress(len(out), unit="data sets")
    return out


def _license(card: str) -> str:
    """The licence that a data set's card names in its front matter; '' when it names none."""
    front = re.match(r"---\n(.*?)\n---", card, re.S)
    value = (yaml.safe_load(front.group(1)) or {}).get("license", "") if front else ""
    return " AND ".join(value) if isinstance(value, list) else str(value)
