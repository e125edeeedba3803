"""Run `evaluate_vlm`: every question once with its image and once with another one's, scored; report, samples,
pictures.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stages.core.context import Context
from stages.core.errors import InputError
from stages.core.timed_part import TimedPart
from stages.evaluate_vlm import scorers
from stages.evaluate_vlm.answering import Answerer
from stages.evaluate_vlm.spec import COLUMNS, TABLE, EvaluateVlmConfig
from stages.lib.evaluation.statistics import aggregates, mean_and_error
from stages.lib.formats.reports import TOY, Control, EvaluatedModel, Harness, Report, Score, write_report
from stages.lib.formats.suites import Suite, read_suite
from stages.lib.modeling.device import compute_device
from stages.lib.vision import hf_checkpoint
from stages.lib.vision.benchmarks import BENCHMARKS, Benchmark, Question, read_questions
from stages.lib.vision.conversations import ImageReader
from stages.lib.vision.image_decoding import MAX_BYTES, ImageProblem, decode

SUITE = "visual"
"""Name of the suite in the report: Table 8's."""
HARNESS, HARNESS_VERSION = "moxin-visual", "1"
BLIND = "blind: another question's image"
IOU = {"refcoco+": 0.5, "ocid-ref": 0.25}
"""Least overlap that counts (RefCOCO's and OCID-Ref's own definitions)."""
THUMBNAIL = 256
"""Longest side of a kept picture, pixels."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Answered:
    """A question, what the model said and what that scored, with its image and blind (None: not asked)."""

    question: Question
    answer: str
    score: float
    blind_answer: str | None
    blind_score: float | None


def run(ctx: Context[EvaluateVlmConfig]) -> None:
    """Write the report."""
    config, folder = ctx.config, Path(ctx.input("suite").path)
    suite = read_suite(folder)
    absent = [name for name in config.benchmarks if suite.find(name) is None]
    if absent:
        raise InputError(
            f"{ctx.node}: the suite of {ctx.input('suite').node} does not hold {', '.join(absent)}; it has"
            f" {', '.join(d.id for d in suite.data_sets)}"
        )
    device = compute_device(ctx.node, ctx.config.device, ctx.config.precision)
    torch.set_num_threads(config.threads)
    model, tokenizer = hf_checkpoint.load(ctx.input("model").path, DTYPES[config.precision])
    parameters = sum(p.numel() for p in model.parameters())
    answerer = Answerer(model, tokenizer, config.batch_size, device)
    results: list[Score] = []
    pictures: list[dict[str, Any]] = []
    parts: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(config.benchmarks):
        ctx.progress(number, len(config.benchmarks), "benchmarks")
        with TimedPart() as part:
            answered, truncated, images, whole = _answer(ctx, answerer, name, folder)
        parts[name] = {**part.spent(), **_asked(config, answered, whole)}
        results.extend(_scores(BENCHMARKS[name], answered, truncated, suite, whole, config))
        shown = f"{TOY}{name}" if _made(suite, name) else name
        _write_samples(Path(ctx.output("report")), name, shown, answered)
        pictures.extend(_keep_pictures(Path(ctx.output("report")), shown, answered, images, config.pictures))
        ctx.log(_line(next(s for s in results[::-1] if s.headline)))
    (Path(ctx.output("report")) / "pictures.json").write_text(json.dumps(pictures, indent=1) + "\n", encoding="utf-8")
    ctx.stat(parts=parts)
    _finish(ctx, results, parameters)


def _asked(config: EvaluateVlmConfig, answered: Sequence[Answered], whole: int) -> dict[str, Any]:
    """How much a benchmark asked: what a forecast of a larger run makes larger."""
    written = not answered[0].question.options
    return {
        "documents": len(answered),
        "of": whole,
        "limit": config.limit,
        "answers": len(answered) if written else 0,
        "new_tokens": config.max_new_tokens if written else None,
    }


def _answer(
    ctx: Context[EvaluateVlmConfig], answerer: Answerer, name: str, folder: Path
) -> tuple[list[Answered], int, Images, int]:
    """Ask one benchmark's questions; also how many prompts did not fit, the images, and how many questions there are in
    all.
    """
    config = ctx.config
    every = read_questions(folder, name)
    questions = every[: config.limit]
    images = Images(folder, name)
    names = list(dict.fromkeys(q.image for q in questions))
    answerer.look((image, images[image]) for image in names)
    seen = _ask(answerer, questions, [q.image for q in questions], config)
    blind: list[tuple[str, Any]] | None = None
    if config.blind:
        other = derangement(names, config.seed)
        blind = _ask(answerer, questions, [other[q.image] for q in questions], config)
    score = scorer(name, images)
    answered = []
    for i, question in enumerate(questions):
        unseen = blind[i] if blind is not None else None
        answered.append(
            Answered(
                question,
                seen[i][0],
                score(question, seen[i][1]),
                unseen[0] if unseen else None,
                score(question, unseen[1]) if unseen else None,
            )
        )
    truncated = sum(
        len(answerer.ask(q.prompt, q.image).ids) + config.max_new_tokens > answerer.context for q in questions
    )
    return answered, truncated, images, len(every)


class Images:
    """A benchmark's images by name, decoded when one is asked for: TallyQA's would be fourteen gigabytes at once."""

    def __init__(self, folder: Path, benchmark: str) -> None:
        self._benchmark = benchmark
        self._reader = ImageReader(folder.glob(f"{benchmark}-[0-9]*.zip"), MAX_BYTES)

    def __getitem__(self, name: str) -> Image.Image:
        """Raises InputError when it cannot be used."""
        try:
            return decode(self._reader[name])[0]
        except (KeyError, ImageProblem) as error:
            raise InputError(f"benchmark {self._benchmark}: image {name} cannot be used: {error}") from error


def derangement(names: list[str], seed: int) -> dict[str, str]:
    """Another image for each image, drawn by the seed (one image alone keeps its own)."""
    order = sorted(names)
    random.Random(seed).shuffle(order)
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))


def _ask(
    answerer: Answerer, questions: Sequence[Question], images: Sequence[str], config: EvaluateVlmConfig
) -> list[tuple[str, Any]]:
    """(answer for people, answer for the scorer) of each question: text, or the number of the likeliest option."""
    asked = [answerer.ask(q.prompt, image) for q, image in zip(questions, images, strict=True)]
    if not questions[0].options:
        return [(text, text) for text in answerer.write(asked, config.max_new_tokens)]
    options = questions[0].options
    choices = [max(range(len(options)), key=likelihoods.__getitem__) for likelihoods in answerer.choose(asked, options)]
    return [(options[choice], choice) for choice in choices]


def scorer(name: str, images: Mapping[str, Image.Image] | Images) -> Callable[[Question, Any], float]:
    """The benchmark's score of one answer."""
    if name == "gqa":
        return lambda q, answer: scorers.exact_match(answer, q.truth)
    if name == "vizwiz":
        return lambda q, answer: scorers.vqa_accuracy(answer, q.truth)
    if name in IOU:
        return lambda q, answer: scorers.grounded(
            answer, scorers.normalized_box(q.truth, q.size or images[q.image].size), IOU[name]
        )
    return lambda q, answer: scorers.chosen(answer, q.truth)


def _scores(
    benchmark: Benchmark,
    answered: list[Answered],
    truncated: int,
    suite: Suite,
    whole: int,
    config: EvaluateVlmConfig,
) -> list[Score]:
    """The benchmark's headline, then its groups."""
    chosen = bool(answered[0].question.options)
    toy = _made(suite, benchmark.name)
    notes = [
        *(["scenes that this run rendered, in the data set's format"] if toy else []),
        *([f"{len(answered)} of {whole} questions"] if len(answered) < whole else []),
        *(
            [f"the suite has {whole} questions, the published split {benchmark.total}"]
            if not toy and whole != benchmark.total
            else []
        ),
        *([f"{truncated} questions lost their beginning to the context's length"] if truncated else []),
    ]
    groups = dict.fromkeys(a.question.group for a in answered if a.question.group)
    parts = [("", answered), *((f"/{group}", [a for a in answered if a.question.group == group]) for group in groups)]
    out = []
    for suffix, part in parts:
        value, error = _mean(benchmark, [a.score for a in part], part, bool(suffix))
        out.append(
            Score(
                suite=SUITE,
                task=benchmark.name + suffix,
                metric=benchmark.metric,
                headline=not suffix,
                value=value,
                stderr=error,
                n=len(part),
                n_total=whole if not suffix else len(part),
                num_fewshot=0,
                data_set=benchmark.data_set,
                split=benchmark.split,
                task_version=HARNESS_VERSION,
                truncated=truncated if not suffix else 0,
                generation=None if chosen else {"do_sample": False, "max_new_tokens": config.max_new_tokens},
                in_domain=toy,
                comparable_to_paper=not notes,
                note="; ".join(notes),
                toy=toy,
                table=TABLE,
                column=COLUMNS[benchmark.name] if not suffix else None,
                control=_control(benchmark, part, value, bool(suffix)),
            )
        )
    return out


def _made(suite: Suite, name: str) -> bool:
    """Whether a benchmark's images and questions are this pipeline's own."""
    data_set = suite.find(name)
    assert data_set is not None
    return data_set.origin == "machine"


def _mean(benchmark: Benchmark, scores: list[float], part: list[Answered], inside: bool) -> tuple[float, float | None]:
    if benchmark.by_group and not inside:
        return scorers.grouped(scores, [a.question.group for a in part])
    return mean_and_error(scores)


def _control(benchmark: Benchmark, part: list[Answered], value: float, inside: bool) -> Control | None:
    blind = [a.blind_score for a in part if a.blind_score is not None]
    if len(blind) < len(part):
        return None
    mean, error = _mean(benchmark, blind, part, inside)
    _, gain_error = _mean(benchmark, [a.score - b for a, b in zip(part, blind, strict=True)], part, inside)
    return Control(name=BLIND, value=mean, stderr=error, gain=value - mean, gain_stderr=gain_error)


def _line(score: Score) -> str:
    control = f", blind {score.control.value:.4f}" if score.control else ""
    return f"{score.name}: {score.metric} {score.value:.4f}{control} ({score.n} questions)"


def _write_samples(folder: Path, name: str, shown: str, answered: list[Answered]) -> None:
    (folder / "samples").mkdir(exist_ok=True)
    with open(folder / "samples" / f"{SUITE}.{name}.jsonl", "w", encoding="utf-8") as stream:
        for a in answered:
            stream.write(json.dumps(_sample(shown, a), ensure_ascii=False) + "\n")


def _sample(name: str, a: Answered) -> dict[str, Any]:
    q = a.question
    truth = q.options[q.truth] if q.options else q.truth
    scored = {
        "answer": a.answer,
        "truth": truth,
        "score": a.score,
        "blind_answer": a.blind_answer,
        "blind_score": a.blind_score,
    }
    return {"benchmark": name, "id": q.id, "image": q.image, "group": q.group, "question": q.asked, **scored}


def _keep_pictures(
    folder: Path, name: str, answered: list[Answered], images: Images, count: int
) -> list[dict[str, Any]]:
    """A few questions, evenly spaced and so not chosen, with a small copy of their image."""
    kept = []
    (folder / "pictures").mkdir(exist_ok=True)
    for number in range(min(count, len(answered))):
        a = answered[number * len(answered) // count]
        image = images[a.question.image]
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        out = io.BytesIO()
        image.save(out, format="JPEG", quality=90)
        file = f"pictures/{name}-{number}.jpg"
        (folder / file).write_bytes(out.getvalue())
        kept.append({"file": file, **_sample(name, a)})
    return kept


def _finish(ctx: Context[EvaluateVlmConfig], results: list[Score], parameters: int) -> None:
    artifact = ctx.input("model")
    heads = [s for s in results if s.headline]
    report = Report(
        model=EvaluatedModel(
            node=artifact.node,
            digest=artifact.manifest.digest,
            parameters=parameters,
            dtype=str(DTYPES[ctx.config.precision]).removeprefix("torch."),
            trained_on=tuple(artifact.meta.get("benchmarks", ())),
        ),
        harness=Harness(name=HARNESS, version=HARNESS_VERSION),
        seed=ctx.config.seed,
        results=tuple(results),
        aggregates=aggregates([SUITE], results),
    )
    write_report(ctx.output("report"), report)
    ctx.stat(**{s.name: round(s.value, 4) for s in heads})
    ctx.stat(**{f"{s.name} blind": round(s.control.value, 4) for s in heads if s.control})
    sees = [
        s.name
        for s in heads
        if s.control and s.control.gain_stderr is not None and s.control.gain > 3 * s.control.gain_stderr
    ]
    ctx.stat(average=round(report.aggregates[0].value, 4), better_than_blind_by_3_errors=sees)
    ctx.describe("report", meta={"benchmarks": len(heads)})
