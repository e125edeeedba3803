"""Run `wait`."""

from __future__ import annotations

import time

from stages.wait.spec import WaitConfig

from stages.core.context import Context


def run(ctx: Context[WaitConfig]) -> None:
    """Wait, and write one file that no other node has."""
    time.sleep(ctx.config.seconds)
    (ctx.output("after") / "note.txt").write_text(f"{ctx.node} {ctx.config.trial}\n", encoding="utf-8")
