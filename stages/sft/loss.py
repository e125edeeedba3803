"""The loss of supervised fine-tuning: TRL's, with label smoothing in one forward pass.

Negative log-likelihood of the labels, summed over the *global* batch and divided by its number of labels:
open-instruct's `--reduce_loss sum` up to the factor 1/labels, to which AdamW is blind (proof:
tests/training/stages/sft/test_run.py). With smoothing e the target of a label is (1 - e) on it and e spread evenly over
the vocabulary (Szegedy et al. 2016).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from trl.trainer.sft_trainer import SFTTrainer

from stages.lib.finetuning.encoding import IGNORED


class SmoothedTrainer(SFTTrainer):
    """TRL's trainer; with `smoothing` above 0 the loss is computed here (TRL's own way runs each batch through the
    model twice).
    """

    def __init__(self, *args: Any, smoothing: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.smoothing = smoothing

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one micro-batch, as a share of the whole batch's mean."""
        if not self.smoothing:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)
        is_label = labels[:, 1:] != IGNORED
        logits, targets = outputs.logits[:, :-1][is_label].float(), labels[:, 1:][is_label]
        count = is_label.sum() if num_items_in_batch is None else num_items_in_batch
        loss = smoothed_sum(logits, targets, self.smoothing) / count
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._note(logits.detach(), targets, "train" if model.training else "eval")
        return (loss, outputs) if return_outputs else loss

    def _note(self, logits: Tensor, targets: Tensor, mode: str) -> None:
        """The metrics that TRL logs with its own loss."""
        log_probs = logits.log_softmax(-1)
        metrics = self._metrics[mode]
        metrics["entropy"].append(float(-(log_probs.exp() * log_probs).sum(-1).mean()))
        metrics["mean_token_accuracy"].append(float((logits.argmax(-1) == targets).float().mean()))


def smoothed_sum(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Summed cross-entropy of logits [N, V] against smoothed targets [N]."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
