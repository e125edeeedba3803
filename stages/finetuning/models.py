"""Load a parent and save a child: ordinary Hugging Face folders on both sides.

The child is the parent's folder with other weights, a chat template, and a card of its own: a fine-tuning stage changes neither
the architecture nor the vocabulary, so configuration and tokenizer travel as they are, byte for byte.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, MistralForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from stages.core.contracts import ConfigError, Context, InputError
from stages.finetuning.settings import TuningConfig
from stages.formats import chat_template, vocabulary
from stages.modeling.folder import read_shape, save_child

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
    gpu = torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise ConfigError(f"{ctx.node}.device = 'cuda', but this machine has no GPU: set 'auto' or 'cpu'")
    device = torch.device("cuda" if gpu and config.device != "cpu" else "cpu")
    if device.type == "cpu" and config.precision != "fp32":
        raise ConfigError(
            f"{ctx.node}.precision = '{config.precision}' on a CPU: half precision is about 100 times slower there "
            "than fp32; set precision = 'fp32', or run on a GPU"
        )
    return device


def load_model(folder: Path, device: torch.device) -> MistralForCausalLM:
    """The model of a folder, float32. Raises InputError when the folder holds none that this pipeline tunes."""
    read_shape(folder)
    try:
        model = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, attn_implementation="sdpa")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the parent's weights cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return model.to(device)  # type: ignore[arg-type, return-value]


def load_tokenizer(folder: Path, template: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a chat template (its text) and padding set."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.chat_template = template
    tokenizer.pad_token = PAD
    return tokenizer


def parent_template(ctx: Context[Any], wanted: str | None = None) -> str:
    """The chat template to tune with: `wanted` by name, which a parent's own must equal; None: the parent's own."""
    parent = ctx.input("parent")
    path = Path(parent.path) / chat_template.FILE
    own = path.read_text(encoding="utf-8") if path.is_file() else None
    if wanted is None:
        if own is None:
            raise ConfigError(f"{ctx.node}: its parent {parent.node} has no chat template: tune it with 'sft' first")
        return own
    template = chat_template.TEMPLATES[wanted]
    if own is not None and own != template:
        raise ConfigError(f"{ctx.node}.chat_template = '{wanted}', but its parent {parent.node} was tuned with another one")
    return template


def describe_child(ctx: Context[Any], model: torch.nn.Module, template: str, card: str) -> Path:
    """Write the child's folder into the output `model`, state its facets, return the folder."""
    parent, folder = ctx.input("parent"), Path(ctx.output("model"))
    save_child(model.state_dict(), Path(parent.path), folder, card, template)
    facets = {**parent.facets, "dtype": "float32", "chat_template_digest": chat_template.digest(template)}
    parameters = sum(p.numel() for p in model.parameters())
    ctx.describe("model", facets=facets, meta={"parameters": parameters, "benchmarks": list(parent.meta.get("benchmarks", ()))})
    return folder
