"""The trainer of reinforcement learning: TRL's GRPO, rewards from the verifier, and AReaL's advantage besides GRPO's
own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from stages.grpo.spec import GrpoConfig
from stages.lib.verifier import Verifier, in_format

EPSILON = 1e-5
"""Added to the standard deviation of advantages (AReaL's masked normalization)."""


class RolloutTrainer(GRPOTrainer):
    """TRL's trainer; with `advantage = "batch"` responses are compared with the whole batch, not with their group.

    rows: responses that are written side by side at most (TRL: the whole batch at one time).
    """

    def __init__(self, *args: Any, advantage: str, rows: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.advantage, self.rows = advantage, rows

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Token ids of a response to each prompt, and no log-probabilities: transformers' `generate` gives none."""
        completion_ids: list[list[int]] = []
        for start in range(0, len(prompt_ids), self.rows):
            part, _ = super()._generate_single_turn(prompt_ids[start : start + self.rows], *args, **kwargs)
            completion_ids.extend(part)
        return completion_ids, None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        out = super()._generate_and_score_completions(inputs)
        if self.advantage == "batch":
            lengths: Any = self.accelerator.gather(out["completion_mask"].sum(1))
            every = batch_advantages(self._rewards[:, 0], lengths)
            begin = self.accelerator.process_index * len(inputs)
            out["advantages"] = every[begin : begin + len(inputs)]
        return out


def batch_advantages(rewards: Tensor, lengths: Tensor) -> Tensor:
    """PPO without a critic and with gamma = lambda = 1: the advantage of every token of a response is its reward,
    normalised by mean and standard deviation over all *tokens* of the batch (AReaL v0.1: adv_norm True, group_adv_norm
    False). [N], [N] -> [N].
    """
    weights = lengths.to(rewards.dtype)
    mean = (rewards * weights).sum() / weights.sum()
    variance = ((rewards - mean) ** 2 * weights).sum() / weights.sum()
    return (rewards - mean) / (variance.sqrt() + EPSILON)


def verified_reward(verifier: Verifier, config: GrpoConfig) -> Callable[..., list[float]]:
    """The reward function that TRL calls with a batch of responses."""

    def verified(
        completions: Sequence[Sequence[dict[str, str]]],
        answer: Sequence[str],
        log_metric: Callable[[str, float], None],
        **rest: Any,
    ) -> list[float]:
        responses = [turns[0]["content"] for turns in completions]
        scores = torch.tensor([v.score for v in verifier.verify_many(list(zip(responses, answer, strict=True)))])
        log_metric("accuracy", float(scores.mean()))
        log_metric("format", sum(map(in_format, responses)) / len(responses))
        return (config.reward_wrong + (config.reward_right - config.reward_wrong) * scores).tolist()

    return verified
