"""A model folder under measurement: it reads in the training's precision, and writes with the training's engine where
there is one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from stages.core.context import Context
from stages.core.errors import Preempted
from stages.core.timed_part import TimedPart
from stages.lib.engines import generation as engine_generation
from stages.lib.engines.generation import Sampling
from stages.lib.engines.process import EngineError
from stages.lib.finetuning import inference_memory, model_loading
from stages.lib.finetuning.encoding import Row
from stages.lib.finetuning.generation import generate
from stages.lib.finetuning.log_probs import label_log_probs
from stages.lib.finetuning.tuning_config import TuningConfig
from stages.lib.modeling.config_file import read_shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
T = TypeVar("T")


class LazyModel:
    """One model. Its weights are loaded when they are first needed, and let go when an engine needs the GPU. times: of
    all, which do not count the loading, and of what is written.
    """

    def __init__(
        self,
        ctx: Context[Any],
        folder: Path,
        device: torch.device,
        what: str,
        times: tuple[TimedPart, TimedPart] | None = None,
    ) -> None:
        self._ctx, self.folder, self._device, self._what = ctx, folder, device, what
        self._time, self._writing = times or (TimedPart(), TimedPart())
        self._config: TuningConfig = ctx.config
        self._model: Any = None
        self._done = 0

    def __enter__(self) -> LazyModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the memory back."""
        self._model = None
        gc.collect()
        torch.cuda.empty_cache()

    def log_probs(self, rows: Sequence[Row]) -> tuple[list[float], list[int]]:
        """Summed log-probability of each row's labels (nats), and how many labels it has."""
        return self._within_memory(
            lambda tokens: label_log_probs(self._loaded(), rows, tokens, self._progress("rows", len(rows)))
        )

    def answers(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float) -> list[list[int]]:
        """Token ids that follow each prompt, up to and with </s>."""
        if not prompts:
            return []
        sampling = Sampling(max_new_tokens, temperature, self._config.seed)
        on_answers = self._progress("answers", len(prompts))
        if self._config.engine in engine_generation.GENERATORS and self._device.type == "cuda":
            self.release()
            try:
                with self._writing:
                    return engine_generation.generate(self._ctx, self.folder, prompts, sampling, on_answers)
            except EngineError as error:
                if "No module named" not in str(error):
                    raise
                self._ctx.log(
                    f"the engine's environment cannot write ({error}): transformers does, one GPU and slower", "warning"
                )
        longest = max(map(len, prompts)) + max_new_tokens
        rows = inference_memory.rows_at_once(
            read_shape(self.folder)[0], longest, self._config.precision, self._config.eval_cache_gib * 2**30
        )

        def write(tokens: int) -> list[list[int]]:
            fewer = max(1, rows * tokens // self._config.eval_tokens)
            return generate(self._loaded(), prompts, sampling, rows=fewer, tokens=tokens, on_answers=on_answers)

        self._loaded()  # before the clock of what is written starts
        with self._writing:
            return self._within_memory(write)

    def _loaded(self) -> Any:
        if self._model is None:
            with self._time.left_out():
                self._model = model_loading.load_model(self.folder, self._device, DTYPES[self._config.precision])
        return self._model

    def _within_memory(self, action: Callable[[int], T]) -> T:
        """Act with so many tokens at one time; with half of them again and again when memory runs out. Raises when a
        quarter of a row's is too much.
        """
        tokens = self._config.eval_tokens
        while True:
            try:
                return action(tokens)
            except (MemoryError, torch.OutOfMemoryError):
                if tokens < 64:
                    raise
            torch.cuda.empty_cache()
            tokens //= 2
            self._ctx.log(
                f"measuring the {self._what}: out of memory, trying again with {tokens} tokens at one time", "warning"
            )

    def _progress(self, unit: str, total: int) -> Callable[[int], None]:
        """Progress, and a stop between two batches when the stage is asked to."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._ctx.progress(min(done, total), total, f"{unit} of the {self._what}")
            if self._ctx.stopping:
                raise Preempted(f"stopped while the {self._what} was measured; the next run goes on from there")

        return advance
