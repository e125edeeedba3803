"""After running out of memory a stage is tried again with less at one time: the same key, the same global batch, and an
end to it.
"""

from __future__ import annotations

from typing import Any

import pytest

from flows import profiles
from stages.core.config import StageConfig
from stages.grpo.spec import Grpo, GrpoConfig
from stages.pipeline import PIPELINE
from stages.pretrain.spec import Pretrain, PretrainConfig
from stages.sft.spec import Sft, SftConfig


def steps_down(stage: Any, config: StageConfig) -> list[StageConfig]:
    """Every configuration that would be tried."""
    found = [config]
    while (lower := stage.smaller(found[-1])) is not None:
        found.append(lower)
        assert len(found) < 40
    return found


@pytest.mark.parametrize("name", profiles.names())
def test_every_nodes_smaller_settings_keep_its_key(name: str) -> None:
    profile = profiles.load(name, PIPELINE)
    for node in PIPELINE:
        chain = steps_down(node, profile.configs[node.name])
        assert all(lower.identity() == chain[0].identity() for lower in chain)
        assert len({repr(lower) for lower in chain}) == len(chain)


def test_a_micro_batch_is_halved_to_its_divisors_and_then_activations_are_made_again() -> None:
    chain = steps_down(Sft, SftConfig(micro_batch_size=12, global_batch_size=36))
    assert [(c.micro_batch_size, c.recompute) for c in chain] == [
        (12, "none"),
        (6, "none"),
        (3, "none"),
        (1, "none"),
        (1, "full"),
    ]  # type: ignore[attr-defined]
    assert all(c.global_batch_size == 36 for c in chain)  # type: ignore[attr-defined]
    windows = steps_down(Pretrain, PretrainConfig(micro_batch_size=4, recompute="full"))
    assert [c.micro_batch_size for c in windows] == [4, 2, 1]  # type: ignore[attr-defined]


def test_an_engine_that_packs_gets_fewer_tokens_but_never_less_than_a_row() -> None:
    verl = GrpoConfig(engine="verl", device="cuda", max_tokens_per_gpu=65_536)
    assert [c.max_tokens_per_gpu for c in steps_down(Grpo, verl)] == [65_536, 32_768, 25_600]  # type: ignore[attr-defined]


def test_only_what_cannot_change_the_result_is_lowered() -> None:
    with pytest.raises(ValueError, match="global_batch_size: would change the result"):
        SftConfig().halved("global_batch_size")
