"""Load a parent and save a child: ordinary Hugging Face folders on both sides.

The child is the parent's folder with other weights, a chat template, and a card of its own: a fine-tuning stage changes
neither the architecture nor the vocabulary, so configuration and tokenizer travel as they are, byte for byte.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, MistralForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.lib.finetuning.tuning_config import TuningConfig
from stages.lib.formats import chat_template, vocabulary
from stages.lib.modeling.config_file import read_shape
from stages.lib.modeling.device import compute_device
from stages.lib.modeling.loading import refuse_incomplete

PAD = vocabulary.SPECIAL[vocabulary.UNK_ID]
"""Padding is masked wherever it stands. It must not be </s>: the end of an answer has to stay visible among padding."""


def quiet() -> None:
    """No progress bars, nothing fetched: what a stage has to say goes through its context."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def prepare(ctx: Context[Any]) -> torch.device:
    """Device and threads of a stage. Raises ConfigError for what this machine cannot do."""
    config: TuningConfig = ctx.config
    quiet()
    torch.set_num_threads(config.threads)
    return compute_device(ctx.node, config.device, config.precision)


def load_model(
    folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, dropout: float = 0.0
) -> MistralForCausalLM:
    """The model of a folder. dropout: on attention weights while it trains, whatever the folder's own config.json says.

    Raises InputError when the folder holds none that this pipeline tunes.
    """
    read_shape(folder)
    try:
        loaded: Any = MistralForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            attn_implementation="sdpa",
            attention_dropout=dropout,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the parent's weights cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    model, info = loaded
    refuse_incomplete(info, "the parent's model folder")
    return model.to(device)


def load_tokenizer(folder: Path, template: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a chat template (its text) and padding set."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.chat_template = template
    tokenizer.pad_token = PAD
    return tokenizer


def parent_template(ctx: Context[Any], name: str | None = None) -> str:
    """The chat template to tune with: `name` of one, which a parent's own must equal; None: the parent's own."""
    parent = ctx.input("parent")
    path = Path(parent.path) / chat_template.FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    if name is None:
        if text is None:
            raise ConfigError(f"{ctx.node}: its parent {parent.node} has no chat template: tune it with 'sft' first")
        return text
    template = chat_template.TEMPLATES[name]
    if text is not None and text != template:
        raise ConfigError(
            f"{ctx.node}.chat_template = '{name}', but its parent {parent.node} was tuned with another one"
        )
    return template


def describe_child(ctx: Context[Any], template: str, parameters: int) -> None:
    """State the child's facets and numbers."""
    parent = ctx.input("parent")
    facets = {**parent.facets, "dtype": "float32", "chat_template_digest": chat_template.digest(template)}
    shape = read_shape(Path(parent.path))[0].model_dump()
    ctx.describe(
        "model",
        facets=facets,
        meta={"parameters": parameters, "shape": shape, "benchmarks": list(parent.meta.get("benchmarks", ()))},
    )


def parent_device(ctx: Context[Any], device: torch.device) -> torch.device:
    """Where the parent's weights are loaded to be trained: an engine of its own reads them from the folder, and needs
    the GPU's memory.
    """
    return device if ctx.config.engine == "trl" else torch.device("cpu")
