"""Run `conversations`: gather, check and split."""

from __future__ import annotations

from stages.conversations.spec import ConversationsConfig
from stages.core.context import Context
from stages.lib.data.decontamination import ContaminationIndex
from stages.lib.formats.examples import (
    Conversation,
    ConversationWriter,
    conversation_fault,
    fingerprint,
    held_out,
    problem_prompt,
    question,
    read_problems,
)
from stages.lib.formats.splits import write_split


def run(ctx: Context[ConversationsConfig]) -> None:
    """Write `train` and `heldout`."""
    config = ctx.config
    if config.origin == "machine":
        from stages.conversations.synthetic import generate as gather
    else:
        from stages.conversations.hub import mixed as gather  # imports `datasets`
    tests = [row["problem"] for row in read_problems(ctx.input("reserved").path)] if ctx.inputs("reserved") else []
    prompts = {fingerprint(problem_prompt(problem, config.instruction)) for problem in tests}
    traces = config.origin == "machine" and config.material == "traces"  # of those too, to be held out
    reserved = ContaminationIndex(() if traces else tests)

    def fault(row: Conversation) -> str | None:
        if reason := conversation_fault(row):
            return reason
        return (
            "reserved for tests"
            if any(m["role"] == "user" and reserved.is_contaminated(m["content"]) for m in row["messages"])
            else None
        )

    def is_heldout(row: Conversation) -> bool:
        return question(row) in prompts if traces else held_out(row, config.heldout, config.seed)

    write_split(ctx, gather, ConversationWriter, fault, is_heldout)
