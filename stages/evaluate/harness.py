"""lm-evaluation-harness in this process: the model, and one entry of a suite scored."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lm_eval
import numpy
import torch
from lm_eval.models.huggingface import HFLM
from safetensors import safe_open

from stages.core.errors import ConfigError, InputError
from stages.evaluate import answers
from stages.evaluate.spec import EvaluateConfig
from stages.evaluate.tasks import Bound
from stages.lib.evaluation.statistics import mean_and_error, pass_at_k
from stages.lib.evaluation.suite_file import TaskEntry
from stages.lib.formats.completions import Candidate
from stages.lib.modeling.loading import refuse_incomplete

DTYPE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Metric:
    """One metric under one filter ("none": the answers as they are)."""

    name: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool = True


@dataclass(frozen=True)
class Scored:
    """What the harness said of one entry. generation: the settings with which answers were written, None where none
    were; programs: of an entry that another stage executes, instead of metrics.
    """

    metrics: tuple[Metric, ...]
    n: int
    n_total: int
    splits: dict[str, str]
    version: str
    truncated: int
    joined: int
    repeats: int
    generation: dict[str, Any] | None
    samples: list[dict[str, Any]]
    programs: tuple[Candidate, ...] = ()


class _Complete:
    """A class of models that refuses a folder with weights missing, where transformers would draw them by chance."""

    def __init__(self, model_class: Any) -> None:
        self._class = model_class

    def from_pretrained(self, folder: str, **options: Any) -> Any:
        """As the class's own."""
        model, info = self._class.from_pretrained(folder, output_loading_info=True, **options)
        refuse_incomplete(info, "the model folder")
        return model


class LM(cast(Any, HFLM)):  # its registry's decorator hides the class from a type checker
    """The harness's model, which says it when an answer does not fit where the harness would fail an assertion."""

    joined = 0
    """Answers that the vocabulary has no tokens of their own for."""

    def _create_model(self, *args: Any, **options: Any) -> None:
        model_class = self.AUTO_MODEL_CLASS
        self.AUTO_MODEL_CLASS = _Complete(model_class)
        try:
            super()._create_model(*args, **options)
        finally:
            self.AUTO_MODEL_CLASS = model_class

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness's, but where a piece spans the end of the context and the whole answer, which leaves it
        without a token, both are encoded by themselves, as the harness does for encoder-decoder models.
        """
        before, answer = super()._encode_pair(context, continuation)
        if answer:
            return before, answer
        self.joined += 1
        return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise ConfigError(
                f"a context of {self.max_length} tokens cannot hold an answer of {longest}: raise max_length, or give a"
                " model with a longer one"
            )
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


@dataclass
class Loaded:
    """The model inside the harness. stored: the dtype that its folder says the weights have."""

    lm: Any
    parameters: int
    stored: str | None


def load(folder: Path, config: EvaluateConfig) -> Loaded:
    """Put a model folder into the harness. Raises ConfigError or InputError."""
    gpu = torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise ConfigError("device = 'cuda', but this machine has no GPU: set 'auto' or 'cpu'")
    torch.set_num_threads(config.threads)
    given = {
        "pretrained": str(folder),
        "dtype": DTYPE[config.precision],
        "batch_size": config.batch_size,
        "trust_remote_code": False,
    }
    try:
        if config.engine == "vllm":
            lm, parameters = _vllm(given, config), _weights(folder)
        else:
            device = "cuda" if gpu and config.device != "cpu" else "cpu"
            lm = LM(**given, device=device, max_length=config.max_length)
            parameters = sum(p.numel() for p in lm.model.parameters())
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the model folder cannot be loaded: {str(error).splitlines()[0]}") from error
    return Loaded(lm, parameters, _stored(folder))


def _vllm(given: dict[str, Any], config: EvaluateConfig) -> Any:
    """The harness's model that vLLM runs. Raises ConfigError where it is not installed."""
    try:
        import vllm  # noqa: F401  # type: ignore[import-not-found]
        from lm_eval.models.vllm_causallms import VLLM
    except ImportError as error:
        raise ConfigError(
            f"engine = 'vllm' cannot be used where this runs ({error}): install lm-eval[vllm], or set engine ="
            " 'transformers'"
        ) from error
    lm = cast(Any, VLLM)(**given, max_length=config.max_length, seed=config.seed)
    lm.joined = 0
    return lm


def _weights(folder: Path) -> int:
    """Numbers in a folder's safetensors, of whose headers alone are read."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total


def _stored(folder: Path) -> str | None:
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return said.get("dtype") or said.get("torch_dtype")


def has_chat_template(model: Loaded) -> bool:
    """Whether the model's tokenizer has one."""
    return bool(getattr(model.lm.tokenizer, "chat_template", None))


def score(model: Loaded, bound: Bound, entry: TaskEntry, config: EvaluateConfig) -> Scored:
    """Score one entry, or have its programs written. Raises ConfigError for what the model or the task cannot do."""
    _refuse_what_cannot_be(model, bound, entry)
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):  # of the bootstrap, and of drawn answers
        seed(config.seed)
    model.lm.joined = 0
    # `simple_evaluate` does the same, and then runs `pip list` and a dozen other programs to describe the machine
    output = cast(Any, lm_eval).evaluate(
        lm=model.lm,
        task_dict=bound.loaded,
        limit=entry.limit,
        bootstrap_iters=config.bootstrap_iters,
        log_samples=True,
        apply_chat_template=entry.chat_template,
        system_instruction=entry.system,
        fewshot_as_multiturn=entry.chat_template,  # as the harness's command line does with a chat template
    )
    counts = [output["n-samples"][name] for name in bound.tasks]
    rows = [(name, row) for name in bound.tasks for row in _ordered(output["samples"][name])]
    first = next(iter(bound.tasks.values())).config
    return Scored(
        metrics=() if entry.execute else (*_metrics(output, bound.name), *_passes(output, bound, entry)),
        n=sum(c["effective"] for c in counts),
        n_total=sum(c["original"] for c in counts),
        splits={name: _split(task) for name, task in bound.tasks.items()},
        version=str(output["versions"].get(bound.name, "")),
        truncated=sum(answers.truncated(model.lm, output["samples"][name]) for name in bound.tasks),
        joined=model.lm.joined,
        repeats=int(first.repeats),
        generation=dict(first.generation_kwargs) if first.output_type == "generate_until" else None,
        samples=[answers.sample(name, row) for name, row in rows],
        programs=tuple(answers.candidates(entry, (row for _, row in rows))) if entry.execute else (),
    )


def _ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the data set's order, whatever the filter."""
    return sorted(rows, key=lambda row: row["doc_id"])


def _split(task: Any) -> str:
    return str(task.config.test_split or task.config.validation_split)


def _refuse_what_cannot_be(model: Loaded, bound: Bound, entry: TaskEntry) -> None:
    if entry.chat_template and not has_chat_template(model):
        raise InputError(
            f"task {entry.task} is asked through a chat template, and the model has none: evaluate a tuned model, or"
            " set chat_template = false"
        )
    for task in bound.tasks.values():
        _refuse_too_few_examples(task)
        settings = task.config.generation_kwargs
        if task.config.output_type != "generate_until":
            continue
        longest = answers.longest_answer(settings, model.lm.max_gen_toks)
        if longest >= model.lm.max_length:
            raise ConfigError(
                f"task {task.task_name} may write {longest} tokens, and the context has {model.lm.max_length}: set"
                " max_new_tokens lower, or max_length higher"
            )
        if entry.repeats > 1 and not settings.get("do_sample"):
            raise ConfigError(
                f"task {task.task_name} writes {entry.repeats} answers that are all the same: set temperature above 0"
            )


def _refuse_too_few_examples(task: Any) -> None:
    """The harness draws worked examples from a split; from the one that is asked, beside the question itself."""
    shots = int(task.config.num_fewshot or 0)
    if not shots:
        return
    split, there = task.fewshot_cfg.split, len(task.sampler.fewshot_indices or task.sampler.df)
    if there < shots + (split == task.config.test_split):
        raise ConfigError(
            f"task {task.task_name} shows {shots} worked examples (num_fewshot), and its data has {there}"
            f"{f' in {split}' if split else ''}: set num_fewshot lower, or take the whole data set"
        )


def _metrics(output: dict[str, Any], name: str) -> Iterator[Metric]:
    """Every metric under every filter, in the harness's order; its keys are `metric,filter`. Raises ConfigError when
    there is no number.
    """
    results = output["results"][name]
    better = {metric: up for said in output["higher_is_better"].values() for metric, up in said.items()}  # of all tasks
    keys = [
        key for key, value in results.items() if "," in key and "_stderr," not in key and isinstance(value, int | float)
    ]
    if not keys:
        raise ConfigError(
            f"task '{name}' gives no number that could be reported, only {', '.join(sorted(results))}: leave it out"
        )
    for key in keys:
        metric, _, chosen = key.partition(",")
        error = results.get(f"{metric}_stderr,{chosen}")
        known = isinstance(error, int | float) and math.isfinite(error)
        up = better.get(metric) is not False
        yield Metric(metric, chosen, float(results[key]), float(error) if known else None, up)


def _passes(output: dict[str, Any], bound: Bound, entry: TaskEntry) -> Iterator[Metric]:
    """pass@k of the answers to each document, under the entry's filter and metric (unset: the harness's first)."""
    if not entry.k:
        return
    filtered = [m for m in _metrics(output, bound.name) if entry.filter in (None, m.filter)]
    named = [m for m in filtered if m.name == entry.metric]
    base = (named or filtered)[0]
    counts = [pair for task in bound.tasks.values() for pair in answers.passed(task, base.filter, base.name)]
    for k in entry.k:
        value, stderr = mean_and_error([pass_at_k(written, right, k) for written, right in counts])
        yield Metric(f"pass@{k}", base.filter, value, stderr)
