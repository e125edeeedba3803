"""Run `step`."""

from __future__ import annotations

import hashlib

from stages.step.spec import StepConfig

from stages.core.context import Context
from stages.core.errors import InputError

FILE = "digest.txt"


def run(ctx: Context[StepConfig]) -> None:
    """Do what the peers' shell command does."""
    if ctx.config.fail:
        raise InputError(f"{ctx.node} fails, as it was told to")
    digest = hashlib.sha256(f"{ctx.node} {ctx.config.trial}\n".encode())
    for before in ctx.inputs("before"):
        digest.update((before.path / FILE).read_bytes())
    (ctx.output("after") / FILE).write_text(digest.hexdigest() + "\n", encoding="utf-8")
