"""Conversations of the hub's data sets, mixed."""

from __future__ import annotations

from collections.abc import Iterator

from stages.conversations.spec import ConversationsConfig
from stages.core.context import Context
from stages.lib.data.dataset_adapters import BadRow, conversation_messages, row_id, row_source
from stages.lib.data.mixture import draw_mixture, interleave
from stages.lib.formats.examples import Conversation, Reject


def mixed(ctx: Context[ConversationsConfig], reject: Reject) -> Iterator[Conversation]:
    """The mixture's rows, normalised; those that cannot be read are rejected with the reason."""
    config = ctx.config
    drawn = draw_mixture(ctx, config.sources, config.mirror, config.seed)
    for number, (one, place, row) in enumerate(interleave(drawn, config.seed)):
        if number % 10_000 == 0:
            ctx.progress(number, sum(len(d.rows) for d in drawn), "rows")
        try:
            messages = conversation_messages(row, one.source.drop_system)
        except BadRow as error:
            reject(str(error))
            continue
        yield {
            "id": f"{one.name}/{row_id(row, place)}",
            "messages": messages,
            "source": row_source(row, one.name),
            "license": one.license,
        }
