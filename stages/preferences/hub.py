"""Pairs of the hub's data sets, mixed."""

from __future__ import annotations

from collections.abc import Iterator

from stages.core.context import Context
from stages.lib.data.dataset_adapters import BadRow, preference_parts, row_id, row_source
from stages.lib.data.mixture import draw_mixture, interleave
from stages.lib.formats.examples import Preference, Reject
from stages.preferences.spec import PreferencesConfig


def mixed(ctx: Context[PreferencesConfig], reject: Reject) -> Iterator[Preference]:
    """The mixture's rows, normalised; those that cannot be read are rejected with the reason."""
    config = ctx.config
    drawn = draw_mixture(ctx, config.sources, config.mirror, config.seed)
    for number, (one, place, row) in enumerate(interleave(drawn, config.seed)):
        if number % 10_000 == 0:
            ctx.progress(number, sum(len(d.rows) for d in drawn), "rows")
        try:
            prompt, chosen, rejected = preference_parts(row)
        except BadRow as error:
            reject(str(error))
            continue
        yield {
            "id": f"{one.name}/{row_id(row, place)}",
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "source": row_source(row, one.name),
            "license": one.license,
        }
