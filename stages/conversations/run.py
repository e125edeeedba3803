"""Run `conversations`: gather, check and split."""

from __future__ import annotations

from stages.conversations.spec import ConversationsConfig
from stages.core.contracts import Context
from stages.examples import (
    Conversation,
    ConversationWriter,
    conversation_fault,
    fingerprint,
    held_out,
    problem_prompt,
    question,
    read_problems,
)
from stages.splits import write_split


def run(ctx: Context[ConversationsConfig]) -> None:
    """Write `train` and `heldout`."""
    config = ctx.config
    if config.origin == "machine":
        from stages.conversations.machine import made as gather
    else:
        from stages.conversations.hub import mixed as gather  # imports `datasets`
    reserved: set[bytes] = set()
    if ctx.inputs("reserved"):
        reserved = {fingerprint(problem_prompt(row["problem"], config.instruction)) for row in read_problems(ctx.input("reserved").path)}
    traces = config.origin == "machine" and config.material == "traces"

    def is_heldout(row: Conversation) -> bool:
        return question(row) in reserved if traces else held_out(row, config.heldout, config.seed)

    write_split(ctx, gather, ConversationWriter, conversation_fault, is_heldout)
