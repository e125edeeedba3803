"""What a stage declares of its reproducibility stands in its README, with the reason."""

from __future__ import annotations

from typing import get_args

import pytest

from stages.core.stage import Reproducible
from stages.pipeline import PIPELINE
from tests.support.paths import ROOT

DECLARED = {node.stage: node.reproducible for node in PIPELINE}


@pytest.mark.parametrize("stage", sorted(DECLARED))
def test_the_readme_says_what_the_stage_declares_and_why(stage: str) -> None:
    text = (ROOT / "stages" / stage / "README.md").read_text(encoding="utf-8")
    declared = DECLARED[stage]
    assert declared in get_args(Reproducible)
    reason = text.partition(f"**Reproducible**: `{declared}`: ")[2].partition("\n")[0]
    assert len(reason) > 20, f"stages/{stage}/README.md gives no reason for `{declared}`"
