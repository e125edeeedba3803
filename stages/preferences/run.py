"""Run `preferences`: gather, check and split."""

from __future__ import annotations

from stages.core.context import Context
from stages.lib.formats.examples import PreferenceWriter, held_out, preference_fault
from stages.lib.formats.splits import write_split
from stages.preferences.spec import PreferencesConfig


def run(ctx: Context[PreferencesConfig]) -> None:
    """Write `train` and `heldout`."""
    config = ctx.config
    if config.origin == "machine":
        from stages.preferences.synthetic import generate as gather
    else:
        from stages.preferences.hub import mixed as gather  # imports `datasets`
    write_split(ctx, gather, PreferenceWriter, preference_fault, lambda row: held_out(row, config.heldout, config.seed))
