"""Run `probe_shards`."""

from __future__ import annotations

import time
from pathlib import Path

from stages.probe_shards.spec import Shards, ShardsConfig

from stages.core.context import Context
from stages.core.reading import open_file
from stages.lib.data.workers import Pool


def repeat(folder: Path, rows: list[str], seconds: float) -> int:
    """One window's part of the shard, after so much work."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    (folder / "part").write_text("".join(rows))
    return len(rows)


def run(ctx: Context[ShardsConfig]) -> None:
    """Write one shard, alone or in tasks of a pool: the same bytes."""
    config = ctx.config
    rows = [path.read_text() for given in ctx.inputs("documents") for path in given.files()]
    text = "".join(rows) * config.sequence_length
    if config.workers != 1:
        task = {"rows": rows, "seconds": config.task_seconds}
        with Pool.of(ctx, Shards.resources(config)) as pool:
            results = pool.map("repeat", repeat, [task] * config.sequence_length)
        parts = []
        for result in results:
            with open_file(result.file("part"), verified=True) as stream:
                parts.append(stream.read().decode())
        text = "".join(parts)
    (ctx.output("shards") / "shard-00000.bin").write_text(text)
    ctx.describe(
        "shards",
        facets={**ctx.input("tokenizer").facets, "sequence_length": config.sequence_length, "dtype": "uint16"},
    )
