"""Engine `colossalai` (0.5.0): Booster with HybridParallelPlugin, LowLevelZeroPlugin or GeminiPlugin, as the paper
trained (3.4).

Weights are in the precision of the matrix products, with float32 copies ("masters") that the optimizer changes. Its own
checkpoints leave out the masters and the counters of the loss scale, so that a resumed run differs from an unbroken
one; here they are kept (`colossalai_state.py`), under the same names and in the same files as engine `torch` has them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster import Booster  # pyright: ignore[reportMissingImports]
from colossalai.booster.plugin import (  # pyright: ignore[reportMissingImports]
    GeminiPlugin,
    HybridParallelPlugin,
    LowLevelZeroPlugin,
)
from colossalai.pipeline.schedule import OneForwardOneBackwardSchedule  # pyright: ignore[reportMissingImports]
from colossalai.zero.gemini import gemini_optimizer  # pyright: ignore[reportMissingImports]
from torch import Tensor

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.weights import Weights, materialize
from stages.lib.training.backends import colossalai_cpu
from stages.lib.training.backends.base import INITIAL_SCALE, Accepts, HeldTensors, Update, WindowBatch
from stages.lib.training.backends.colossalai_model import ModelChunk, PartPolicy
from stages.lib.training.backends.colossalai_state import (
    ChunkParameterShards,
    ParameterShards,
    scaler_state,
    set_scaler_state,
)
from stages.lib.training.checkpointer import Read
from stages.lib.training.config import DecoderConfig
from stages.lib.training.optimizer import PRECISION, WEIGHT, make_optimizer, set_learning_rate
from stages.lib.training.parallel_dims import ParallelDims

MIXINS = ("mixed_precision_mixin", "mixed_precision", "mix_precision_mixin")
"""What ZeRO's, the hybrid plugin's and Gemini's optimizer call what scales their loss."""


def make_plugin(config: DecoderConfig, dims: ParallelDims) -> Any:
    """The plugin that the configuration asks for."""
    sizes, gpu = config.parallel, dims.device.type == "cuda"
    zero_stage = sizes.zero_of("colossalai")
    common: dict[str, Any] = {
        "precision": config.precision,
        "max_norm": config.grad_clip,
        "initial_scale": INITIAL_SCALE,
    }
    zero: dict[str, Any] = {
        "overlap_communication": gpu,
        "cpu_offload": sizes.offload,
    }  # a processor has no second stream
    if sizes.plugin == "low_level_zero":
        return LowLevelZeroPlugin(stage=zero_stage, **common, **zero)
    if sizes.plugin == "gemini":
        several = config.global_batch_size // dims.data_parallel_size > config.micro_batch_size
        return GeminiPlugin(enable_async_reduce=gpu, enable_gradient_accumulation=several, **common)
    split = sizes.tensor > 1
    return HybridParallelPlugin(
        tp_size=sizes.tensor,
        pp_size=sizes.pipeline,
        sp_size=1,
        zero_stage=zero_stage,
        microbatch_size=config.micro_batch_size,
        enable_sequence_parallelism=split,
        sequence_parallelism_mode="split_gather" if split else None,
        custom_policy=PartPolicy(),
        **common,
        **zero,
    )


class ChunkAdamW(torch.optim.AdamW):
    """AdamW as Gemini calls it: gradients are in half precision, weights in float32. Its own HybridAdam needs a CUDA
    compiler, this does not.
    """

    def step(self, closure: Any = None, div_scale: float = -1.0) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad.float()
                parameter.grad = None
                parameter.grad = gradient if div_scale < 0 else gradient.div_(div_scale)
        super().step()


gemini_optimizer._AVAIL_OPTIM_LIST.add(ChunkAdamW)


class ColossalBackend:
    """`Backend` by Colossal-AI."""

    def __init__(self, model: MoxinLM, weights: Weights, config: DecoderConfig, dims: ParallelDims) -> None:
        """Its plugins cut a model that lies whole in each process: in the precision of the matrix products on its
        device; Gemini's in float32 in main memory. What is exact is read once more, weight by weight, when it is cut.
        """
        if dims.device.type == "cpu":
            colossalai_cpu.install()
        colossalai_cpu.repair_pipeline()
        colossalai_cpu.repair_accumulation()
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
        self._config, self._dims = config, dims
        gemini = config.parallel.plugin == "gemini"
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if not gemini:
            model.to(PRECISION[config.precision])
        materialize(model, torch.device("cpu") if gemini else dims.device, weights)
        optimizer = make_optimizer(model, config, ChunkAdamW if gemini else torch.optim.AdamW)
        self._plugin = make_plugin(config, dims)
        self._booster = Booster(plugin=self._plugin)
        self.model, self._optimizer, *_ = self._booster.boost(ModelChunk(model, config), optimizer)
        self.model.train()
        if gemini:
            self._shards: ParameterShards = ChunkParameterShards(shapes, self.model, self._optimizer, dims)
        else:
            self._shards = ParameterShards(self.model.unwrap().lm, self._optimizer, self._plugin, dims)
        if config.precision != "fp32":  # the masters were made from rounded weights
            self._shards.start_from(weights)
        self._mixin: Any = next(
            (mixin for name in MIXINS if (mixin := getattr(self._optimizer, name, None)) is not None), None
        )
        self._scaler = getattr(self._mixin, "grad_scaler", None)
        self._evaluation_schedule = (
            OneForwardOneBackwardSchedule(self._plugin.stage_manager, microbatch_size=config.micro_batch_size)
            if self._has_pipeline
            else None
        )

    @property
    def _has_pipeline(self) -> bool:
        return self._config.parallel.pipeline > 1

    # --- steps --------------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[WindowBatch], learning_rate: float, predicted: float, accepts: Accepts) -> Update:
        set_learning_rate(self._optimizer, learning_rate)
        weight = self._dims.data_parallel_size / predicted  # gradients become the mean over the parts
        loss = self._pipeline(batches, weight) if self._has_pipeline else self._accumulate(batches, weight)
        scale = self._scaler.scale.item() if self._scaler else 1.0
        with self._unchanged_scale(scale), self._asking(accepts, loss, scale):
            self._optimizer.step()
        if (
            self._config.parallel.plugin == "gemini"
        ):  # upstream leaves this on after an overflow, and adds to infinity from then on
            self.model.chunk_manager.accumulating_grads = False
        overflow = self._scaler is not None and self._mixin.found_overflow.item() > 0
        norm = math.inf if overflow else float(self._optimizer._current_grad_norm) / scale
        self._optimizer.zero_grad()
        update = Update(loss, norm, overflow and scale > 1.0)
        if overflow:  # Colossal-AI has left the step out before it came to AdamW
            accepts(update)
        return update

    @contextlib.contextmanager
    def _asking(self, accepts: Accepts, loss: float, scale: float) -> Iterator[None]:
        """All of its optimizers work out the norm and then call AdamW, whose update is left out where it is not
        accepted: what they do afterwards brings the weights to where the float32 ones are.
        """
        adamw = self._optimizer.optim
        change = adamw.step

        def step(*given: Any, **named: Any) -> None:
            if accepts(Update(loss, float(self._optimizer._current_grad_norm) / scale)):
                change(*given, **named)
            else:
                adamw.zero_grad()

        adamw.step = step
        try:
            yield
        finally:
            del adamw.step

    def _accumulate(self, batches: Sequence[WindowBatch], weight: float) -> float:
        total = 0.0
        for batch in batches:
            held = (
                batch is not batches[-1] and self._config.parallel.zero_of("colossalai") < 2
            )  # stage 2 keeps no whole gradient to hold back
            with self._booster.no_sync(self.model, self._optimizer) if held else contextlib.nullcontext():
                loss = self.model(**_arguments(batch))["loss"]
                self._booster.backward(loss * weight, self._optimizer)
            total += float(loss.detach())
        return total

    def _pipeline(self, batches: Sequence[WindowBatch], weight: float) -> float:
        """All micro-batches through the stages, one forward and one backward at a time (1F1B). Colossal-AI divides by
        their number.
        """
        factor = weight * len(batches)
        whole = {key: torch.cat([_arguments(b)[key] for b in batches]) for key in _arguments(batches[0])}
        done = self._booster.execute_pipeline(
            iter([whole]), self.model, lambda out, _: out["loss"] * factor, self._optimizer, return_loss=True
        )
        return float(done["loss"]) / weight if done["loss"] is not None else 0.0

    @contextlib.contextmanager
    def _unchanged_scale(self, scale: float) -> Iterator[None]:
        """Colossal-AI lets the loss scale grow and then divides by the new one gradients that have the old one: half a
        step.
        """
        if self._scaler is None:
            yield
            return
        current_scale = self._mixin.get_grad_div_scale
        self._mixin.get_grad_div_scale = lambda: (current_scale(), scale)[1]
        yield
        del self._mixin.get_grad_div_scale

    @torch.no_grad()
    def evaluate(self, batch: WindowBatch) -> float:
        self.model.eval()
        if self._evaluation_schedule is None:
            return float(self.model(**_arguments(batch))["loss"])
        criterion = lambda out, _: out["loss"]  # noqa: E731
        done = self._evaluation_schedule.forward_backward_step(
            self.model, iter([_arguments(batch)]), criterion, return_loss=True
        )
        return float(done["loss"]) if done["loss"] is not None else 0.0

    def finish_evaluation(self) -> None:
        self.model.train()

    # --- state --------------------------------------------------------------------------------------------------

    def held(self) -> HeldTensors:
        return self._shards.held()

    def extra_state(self) -> dict[str, Any]:
        return {"scaler": scaler_state(self._scaler)}

    def save(self, folder: Path) -> Callable[[], None]:
        return self._shards.save(folder)

    def load(self, read: Read, state: Mapping[str, Any], updates: int) -> None:
        self._shards.load(read, updates)
        set_scaler_state(self._scaler, state["scaler"])

    def load_moments(self, read: Read, updates: int) -> None:
        self._shards.load_moments(read, updates)

    def export(self, name: str, writer: int, kept: str = WEIGHT) -> Tensor | None:
        return self._shards.export(name, writer, kept)


def _arguments(batch: WindowBatch) -> dict[str, Tensor]:
    """What a `ModelChunk` is called with."""
    named = {"ids": batch.ids, "documents": batch.documents, "sequences": batch.sequences}
    return {key: value for key, value in named.items() if value is not None}
