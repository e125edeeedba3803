"""Toy questions in the schemas of real data sets: what a model that learned `problems` can be seen to solve.

Every problem is a sum of one-digit numbers, as `[node.problems]` of the profile `tiny` has them, and one that a
`problems` node with the same `seed` and `heldout` holds out: no row of its `train`, nor of traces made of it, asks it.
Worked examples (the training splits) are of the other side. A data set's own knowledge (which number follows, which
words come first) is asked where its schema has no place for a problem.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stages.benchmarks.spec import TOY_DATA_SETS, BenchmarksConfig, DataSetSource
from stages.core.errors import ConfigError, InputError
from stages.lib.data.worked_problems import WORKED_PROBLEMS, Draw
from stages.lib.formats.examples import fingerprint, in_heldout

FEW = 16
"""Rows of a training split: worked examples are drawn from them."""
STALE = 5000
"""Draws in a row without a new problem after which there is none left."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Sums:
    """Difficulty of a problem (stages/lib/data/worked_problems.py)."""

    terms: tuple[int, int]
    largest: int


def make(where: str, id: str, source: DataSetSource, config: BenchmarksConfig) -> dict[str, dict[str, pa.Table]]:
    """{configuration: {split: table}} of one data set. Same configuration: same rows.

    Raises ConfigError when no toy is made of it, InputError when it has no such configuration or split.
    """
    if id not in TOYS:
        raise ConfigError(f"{where}.origin = 'machine': no toy questions are made in the schema of {id}")
    toy = TOYS[id]
    asked, examples = problems(config)
    rng = random.Random(f"{config.seed} {id}")
    names = toy.configs if source.configs is None else source.configs
    if missing := sorted(set(names) - set(toy.configs)):
        raise InputError(f"{where}.configs: data set {id} has no configuration '{missing[0]}'")
    splits = {toy.split: asked} | ({"train": examples} if toy.train else {})
    if missing := sorted(set(source.splits or ()) - set(splits)):
        raise InputError(f"{where}.splits: data set {id} has no split '{missing[0]}', only {', '.join(splits)}")
    count = max(1, config.questions // len(names))
    tables: dict[str, dict[str, pa.Table]] = {}
    for name in names:
        tables[name] = {}
        for split, pool in splits.items():
            drawn = rng.sample(pool, min(FEW if split == "train" else count, len(pool)))
            rows = [toy.row(name, number, draw, rng) for number, draw in enumerate(drawn)]
            if split in (source.splits or splits):
                tables[name][split] = pa.Table.from_pylist(rows, schema=toy.schema(name))
    return tables


def problems(config: BenchmarksConfig) -> tuple[list[Draw], list[Draw]]:
    """All problems that a `problems` node holds out, and all that it trains on."""
    difficulty = Sums((config.terms, config.terms), config.largest)
    rng = random.Random(config.seed)
    draws: dict[str, Draw] = {}
    stale = 0
    while stale < STALE:
        draw = WORKED_PROBLEMS["sum"](difficulty, rng)
        stale = stale + 1 if draw[0] in draws else 0
        draws.setdefault(draw[0], draw)
    sides: tuple[list[Draw], list[Draw]] = ([], [])
    for problem in sorted(draws):
        sides[not in_heldout(fingerprint(problem), config.heldout, config.seed)].append(draws[problem])
    if not all(sides):
        raise ConfigError(
            f"terms = {config.terms} and largest = {config.largest} give {len(draws)} problems, of which"
            f" {len(sides[0])} are held out: raise one of them, or heldout"
        )
    return sides


# --- schemas, as the data sets have them on the hub ----------------------------------------------------------------

_S = pa.string()
_TARGETS = pa.struct([("choices", pa.list_(_S)), ("labels", pa.list_(pa.int32()))])
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", _S)])


def _strings(*names: str) -> pa.Schema:
    return pa.schema([(name, _S) for name in names])


_GENERATION = pa.schema(
    [
        *_strings("type", "category", "question", "best_answer"),
        ("correct_answers", pa.list_(_S)),
        ("incorrect_answers", pa.list_(_S)),
        ("source", _S),
    ]
)
_MULTIPLE_CHOICE = pa.schema([("question", _S), ("mc1_targets", _TARGETS), ("mc2_targets", _TARGETS)])
_NUMBERS = ("id", "subj_id", "prop_id", "obj_id", "s_pop", "o_pop")
_POPQA = pa.schema(
    [
        (name, pa.int64() if name in _NUMBERS else _S)
        for name in (
            *("id", "subj", "prop", "obj", "subj_id", "prop_id", "obj_id", "s_aliases", "o_aliases", "s_uri", "o_uri"),
            *("s_wiki_title", "o_wiki_title", "s_pop", "o_pop", "question", "possible_answers"),
        )
    ]
)
_OLYMPIAD = pa.schema(
    [
        *(("id", pa.int64()), ("question", _S), ("solution", pa.list_(_S)), ("final_answer", pa.list_(_S))),
        ("context", _S),
        *((f"image_{number}", _IMAGE) for number in range(1, 6)),
        *(("modality", _S), ("difficulty", _S), ("is_multiple_answer", pa.bool_()), ("unit", _S)),
        *_strings("answer_type", "error", "question_type", "subfield", "subject", "language"),
    ]
)
MATH_CONFIGS = {
    "algebra": "Algebra",
    "counting_and_probability": "Counting & Probability",
    "geometry": "Geometry",
    "intermediate_algebra": "Intermediate Algebra",
    "number_theory": "Number Theory",
    "prealgebra": "Prealgebra",
    "precalculus": "Precalculus",
}
BBH_CONFIGS = (
    *("boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages"),
    *("formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects"),
    *("logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation"),
    *("multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table"),
    *("reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks"),
    *("sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects"),
    *("tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies"),
    "word_sorting",
)


# --- rows ----------------------------------------------------------------------------------------------------------


def _boxed(draw: Draw) -> str:
    return f"{draw[1]} The answer is $\\boxed{{{draw[2]}}}$."


def _wrong(answer: str, rng: random.Random) -> list[str]:
    """Three other numbers, near the right one."""
    near = [str(number) for number in range(max(0, int(answer) - 3), int(answer) + 4) if str(number) != answer]
    return rng.sample(near, 3)


def _gsm8k(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    return {"question": draw[0], "answer": f"{draw[1]}\n#### {draw[2]}"}


def _math(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    return {"problem": draw[0], "level": "Level 1", "type": MATH_CONFIGS[name], "solution": _boxed(draw)}


def _math_500(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    about = {"subject": "Prealgebra", "level": 1, "unique_id": f"test/prealgebra/{number}.json"}
    return {"problem": draw[0], "solution": _boxed(draw), "answer": draw[2], **about}


def _bbh(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    """Truth values and words in order where the configuration asks for them; a problem everywhere else."""
    if name == "boolean_expressions":
        words = [rng.choice(("True", "False")) for _ in range(3)]
        first, second = (rng.choice(("and", "or")) for _ in range(2))
        left = all(w == "True" for w in words[:2]) if first == "and" else "True" in words[:2]
        right = words[2] == "True"
        value = (left and right) if second == "and" else (left or right)
        return {"input": f"( {words[0]} {first} {words[1]} ) {second} {words[2]} is", "target": str(value)}
    if name == "word_sorting":
        words = rng.sample(("apple", "bread", "cloud", "door", "east", "fish", "green", "house"), 4)
        return {
            "input": f"Sort the following words alphabetically: List: {' '.join(words)}",
            "target": " ".join(sorted(words)),
        }
    return {"input": draw[0], "target": draw[2]}


def _truthful(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    wrong = _wrong(draw[2], rng)
    right = [f"It is {draw[2]}.", f"The answer is {draw[2]}."]
    false = [f"It is {other}." for other in wrong]
    if name == "generation":
        about = {"type": "Adversarial", "category": "Toy", "source": "toy"}
        return {
            **about,
            "question": draw[0],
            "best_answer": right[0],
            "correct_answers": right,
            "incorrect_answers": false,
        }
    return {
        "question": draw[0],
        "mc1_targets": {"choices": [right[0], *false], "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": [*right, *false], "labels": [1, 1, 0, 0, 0]},
    }


def _popqa(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    subject = 10 + number
    row: Row = {"subj": str(subject), "prop": "successor", "obj": str(subject + 1)}
    row |= {"id": number, "subj_id": subject, "prop_id": 0, "obj_id": subject + 1, "s_pop": 0, "o_pop": 0}
    row |= {"s_aliases": "[]", "o_aliases": "[]", "s_uri": "", "o_uri": ""}
    row |= {"s_wiki_title": str(subject), "o_wiki_title": str(subject + 1)}
    return row | {"question": f"Which number follows {subject}?", "possible_answers": json.dumps([str(subject + 1)])}


def _amc(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    return {"id": number, "question": draw[0], "answer": draw[2], "url": ""}


def _minerva(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    return {"question": draw[0], "answer": draw[2]}


def _olympiad(name: str, number: int, draw: Draw, rng: random.Random) -> Row:
    kind = {"modality": "Text-only", "difficulty": "Competition", "is_multiple_answer": False, "subject": "Math"}
    kind |= {"answer_type": "Numerical", "question_type": "Open-ended", "subfield": "Algebra", "language": "English"}
    return {"id": number, "question": draw[0], "solution": [_boxed(draw)], "final_answer": [draw[2]], **kind}


@dataclass(frozen=True)
class Toy:
    """One data set: its configurations, how a row is made, the split that is scored, whether it has one to train on."""

    row: Callable[[str, int, Draw, random.Random], Row]
    schema: Callable[[str], pa.Schema]
    split: str = "test"
    configs: Sequence[str] = ("default",)
    train: bool = False


def _same(schema: pa.Schema) -> Callable[[str], pa.Schema]:
    return lambda _: schema


TOYS: Mapping[str, Toy] = {
    "openai/gsm8k": Toy(_gsm8k, _same(_strings("question", "answer")), configs=("main",), train=True),
    "EleutherAI/hendrycks_math": Toy(
        _math, _same(_strings("problem", "level", "type", "solution")), configs=tuple(MATH_CONFIGS), train=True
    ),
    "HuggingFaceH4/MATH-500": Toy(
        _math_500,
        _same(
            pa.schema([*_strings("problem", "solution", "answer", "subject"), ("level", pa.int64()), ("unique_id", _S)])
        ),
    ),
    "SaylorTwift/bbh": Toy(_bbh, _same(_strings("input", "target")), configs=BBH_CONFIGS),
    "truthfulqa/truthful_qa": Toy(
        _truthful,
        lambda name: _GENERATION if name == "generation" else _MULTIPLE_CHOICE,
        "validation",
        ("generation", "multiple_choice"),
    ),
    "akariasai/PopQA": Toy(_popqa, _same(_POPQA)),
    "math-ai/amc23": Toy(_amc, _same(pa.schema([("id", pa.int64()), *_strings("question", "answer", "url")]))),
    "math-ai/minervamath": Toy(_minerva, _same(_strings("question", "answer"))),
    "math-ai/olympiadbench": Toy(_olympiad, _same(_OLYMPIAD)),
}
assert tuple(TOYS) == TOY_DATA_SETS
