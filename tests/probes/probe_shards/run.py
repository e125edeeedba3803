"""Run `probe_shards`."""

from __future__ import annotations

from stages.probe_shards.spec import ShardsConfig

from stages.core.context import Context


def run(ctx: Context[ShardsConfig]) -> None:
    """Write one shard."""
    rows = [path.read_text() for given in ctx.inputs("documents") for path in given.files()]
    (ctx.output("shards") / "shard-00000.bin").write_text("".join(rows) * ctx.config.sequence_length)
    ctx.describe(
        "shards",
        facets={**ctx.input("tokenizer").facets, "sequence_length": ctx.config.sequence_length, "dtype": "uint16"},
    )
