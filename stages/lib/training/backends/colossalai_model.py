"""How Colossal-AI cuts a MoxinLM: which weights each process of a tensor group has, and which blocks each stage of a
pipeline.

The model's own forward pass does the communication of tensor parallelism (`decoder.AttentionContext`): between
blocks each process has its part of the tokens, Colossal-AI's sequence parallelism "split_gather". So what a process
does not cut gets a part of its gradient, which Colossal-AI adds up for weights that are marked so.
"""

from __future__ import annotations

from typing import Any

import torch
from colossalai.shardformer.layer.utils import SeqParallelUtils  # pyright: ignore[reportMissingImports]
from colossalai.shardformer.policies.base_policy import Policy  # pyright: ignore[reportMissingImports]
from colossalai.tensor.d_tensor.api import (  # pyright: ignore[reportMissingImports]
    shard_colwise,
    shard_rowwise,
    sharded_tensor_to_existing_param,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.sequence_dropout import dropout_of
from stages.lib.training.backends.tensor_parallel import COLUMNS, ROWS
from stages.lib.training.config import DecoderConfig


class ModelChunk(nn.Module):
    """A MoxinLM, or the blocks of it that this process has: windows in, and the loss out, or the states for the next
    stage.
    """

    def __init__(self, lm: MoxinLM, config: DecoderConfig) -> None:
        super().__init__()
        self.lm, self._config = lm, config
        self.blocks = range(len(lm.model.layers))

    @property
    def first(self) -> bool:
        """Whether the embedding is here."""
        return self.blocks.start == 0

    @property
    def last(self) -> bool:
        """Whether the loss is made here."""
        return self.blocks.stop == len(self.lm.model.layers)

    def forward(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        sequences: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """{"loss": summed} from windows [B, T]; in a pipeline's other stages {"hidden": [B, T, D]}, which the next one
        is given.
        """
        dropout = dropout_of(self._config.seed, sequences)
        if self.first and self.last:
            return {"loss": self.lm.loss_sum(ids, documents, dropout)[0]}
        x = self.lm.embed(ids) if hidden is None else hidden
        context = self.lm.attention_context(x, ids.shape[1], documents, dropout)
        for number in self.blocks:
            x = self.lm.model.layers[number](x, context)
        if not self.last:
            return {"hidden": x}
        return {"loss": self.lm.loss_of(self.lm.model.norm(x), ids, documents)[0]}


class PartPolicy(Policy):
    """What Colossal-AI's sharder does with a `ModelChunk`."""

    def config_sanity_check(self) -> None:
        pass  # stages/lib/training/validation.py did

    def preprocess(self) -> nn.Module:
        assert self.model is not None
        if manager := self.pipeline_stage_manager:
            start, stop = manager.get_stage_index(manager.distribute_layers(len(self.model.lm.model.layers)))
            self.model.blocks = range(int(start), int(stop))
        return self.model

    def get_held_layers(self) -> list[nn.Module]:
        part: Any = self.model
        lm = part.lm
        held = [lm.model.layers[number] for number in part.blocks]
        return [
            *([lm.model.embed_tokens] if part.first else []),
            *held,
            *([lm.model.norm, lm.lm_head] if part.last else []),
        ]

    def module_policy(self) -> dict[Any, Any]:
        return {}

    def postprocess(self) -> nn.Module:
        part: Any = self.model
        assert self.shard_config is not None
        if self.shard_config.enable_tensor_parallelism:
            cut(part.lm, self.shard_config.tensor_parallel_process_group)
        return part


def cut(lm: MoxinLM, group: Any) -> None:
    """Keep this process's part of each matrix, in place: the same parameters, with less in them."""
    lm.tensor_group = DeviceMesh.from_group(
        group, "cuda" if torch.cuda.is_available() and group.name() != "gloo" else "cpu"
    )
    for name, module in lm.named_modules():
        last = name.rpartition(".")[2]
        for parameter in module.parameters(recurse=False):
            if last in COLUMNS:
                sharded_tensor_to_existing_param(shard_rowwise(parameter.data, group), parameter)
            elif last in ROWS:
                sharded_tensor_to_existing_param(shard_colwise(parameter.data, group), parameter)
            else:
                SeqParallelUtils.marked_as_sp_partial_derived_param(parameter)
