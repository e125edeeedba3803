"""`stages.pretrain.data`: the same windows in a step, whoever reads them and wherever the run is taken up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.core.artifacts import TokenShards
from stages.core.errors import InputError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats.shards import Shards, ShardWriter
from stages.lib.training.parallel_dims import ParallelDims
from stages.pretrain.data import WindowData, open_windows
from tests.support.pretraining import LENGTH, VOCABULARY, config

STEPS = 20  # beyond two epochs of 30 windows


def opened(root: Path, artifacts: Any, rank: int = 0, ranks: int = 1) -> WindowData:
    ctx = LocalContext(root, config(tokens=STEPS * 4 * 16), artifacts)
    return open_windows(ctx, ParallelDims(torch.device("cpu"), rank, ranks))


def windows(data: WindowData, step: int) -> list[list[int]]:
    return [row for batch in data.micro_batches(step) for row in batch.ids.tolist()]


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_processes_reads_the_same_batches(tmp_path: Path, artifacts: Any, ranks: int) -> None:
    whole = opened(tmp_path, artifacts)
    parts = [opened(tmp_path, artifacts, rank, ranks) for rank in range(ranks)]
    seen = []
    for step in range(STEPS):
        batch = windows(whole, step)
        assert batch == [row for part in parts for row in windows(part, step)]
        seen += batch
    epochs = np.sort(np.array([hash(tuple(row)) for row in seen])[:60].reshape(2, 30), axis=1)
    assert np.array_equal(epochs[0], epochs[1]), "each epoch has every window"
    assert seen[:30] != seen[30:60], "in an order of its own"
    for data in (whole, *parts):
        data.close()


def test_a_run_that_is_taken_up_anywhere_reads_what_an_unbroken_one_does(tmp_path: Path, artifacts: Any) -> None:
    whole = opened(tmp_path, artifacts)
    unbroken = [windows(whole, step) for step in range(STEPS)]
    whole.close()
    for first in (1, 7, 19):
        again = opened(tmp_path, artifacts)
        assert [windows(again, step) for step in range(first, STEPS)] == unbroken[first:]
        again.close()


def test_a_damaged_window_ends_the_training_at_its_step(tmp_path: Path, artifacts: Any) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in artifacts["tokens"][0].path.glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    data = bytearray((folder / "shard-00000.bin").read_bytes())
    data[-5] ^= 1
    (folder / "shard-00000.bin").write_bytes(data)
    damaged = opened(tmp_path, {**artifacts, "tokens": [local_artifact(TokenShards, folder)]})
    damaged.train.page = 1
    with pytest.raises(InputError, match="window 29 is not that of its CRC32"):
        [damaged.micro_batches(step) for step in range(STEPS)]


@pytest.mark.parametrize(("cache", "times"), [(1 << 20, 1.0), (0, 1.1)])
def test_an_epoch_reads_its_windows_once(
    tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch, cache: int, times: float
) -> None:
    """Also where blocks are far shorter than pages, and all windows are more than is kept."""
    (folder := tmp_path / "many").mkdir()
    with ShardWriter(folder, LENGTH, VOCABULARY, 2, "digest", rows_per_shard=4096) as writer:
        writer.add(np.random.default_rng(0).integers(3, VOCABULARY, (4096, LENGTH)))
    facets = dict(artifacts["tokens"][0].facets)
    monkeypatch.setattr("stages.lib.formats.shards.PAGE_BYTES", 1 << 14)
    monkeypatch.setattr("stages.pretrain.data.AHEAD_BYTES", 1)
    shards = Shards.open(local_artifact(TokenShards, folder, facets).entries())
    shards.cache_bytes, read = cache, Shards._read
    counts: list[int] = []
    monkeypatch.setattr(Shards, "_read", lambda self, entry, first, n: counts.append(n) or read(self, entry, first, n))
    data = WindowData(config(tokens=4096 * LENGTH), shards, None, ParallelDims(torch.device("cpu"), 0, 1))
    for step in range(1024):
        data.micro_batches(step)
    data.close()
    assert sum(counts) <= times * 4096
