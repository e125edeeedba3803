"""The backend that a configuration asks for, around the pipeline's decoder."""

from __future__ import annotations

from torch import Tensor

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.sequence_dropout import dropout_of
from stages.lib.modeling.weights import Weights
from stages.lib.training.backends.base import Backend, Trainable, WindowBatch
from stages.lib.training.backends.fsdp import TorchBackend
from stages.lib.training.config import DecoderConfig
from stages.lib.training.parallel_dims import ParallelDims


def make_backend(model: MoxinLM, weights: Weights, config: DecoderConfig, dims: ParallelDims) -> Backend:
    """Spread `model`, which was built on `meta`, over the processes, and let it begin with `weights`. It must not be
    used otherwise from then on.
    """
    if config.engine == "colossalai":
        from stages.lib.training.backends.colossalai import ColossalBackend  # its environment alone has Colossal-AI

        return ColossalBackend(model, weights, config, dims)

    def loss_sum(batch: WindowBatch) -> Tensor:
        return model.loss_sum(batch.ids, batch.documents, dropout_of(config.seed, batch.sequences))[0]

    if config.compile:
        model.compile_blocks()
    trainable = Trainable(model, weights, list(model.model.layers), loss_sum, ("loss_sum",))
    return TorchBackend(trainable, config, dims, config.threads)
