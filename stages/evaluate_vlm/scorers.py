"""How an answer is scored, each benchmark by its own definition (Prismatic's
vlm-evaluation).

A scorer gives one question's score, 0 to 1. Truths are what `stages.lib.vision.benchmarks` reads.
"""

from __future__ import annotations

import ast
import math
import re
import string
from collections.abc import Sequence

from stages.lib.evaluation.statistics import mean_and_error, mean_of_means

GQA_PUNCTUATION = str.maketrans("", "", string.punctuation)
VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""The official VQA evaluation's list. A sign beside a blank is dropped, any other one becomes a blank."""
NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
ARTICLES = frozenset(("a", "an", "the"))
CONTRACTIONS = [
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hasn't",
    "haven't",
    "he'd",
    "he's",
    "how'd",
    "how's",
    "i'm",
    "i've",
    "isn't",
    "it'd",
    "it'll",
    "let's",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "o'clock",
    "shan't",
    "she's",
    "should've",
    "shouldn't",
    "somebody's",
    "someone's",
    "something's",
    "that's",
    "there's",
    "they'd",
    "they'll",
    "they're",
    "they've",
    "'twas",
    "wasn't",
    "we've",
    "weren't",
    "what'll",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "who'd",
    "who'll",
    "who's",
    "who've",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "y'all",
    "you'd",
    "you'll",
    "you're",
    "you've",
]
"""Words that get back the apostrophe that careless writing leaves out."""
_RESTORED = {word.replace("'", ""): word for word in CONTRACTIONS}
_NUMBER_COMMA = re.compile(r"\d,\d")
Box = tuple[float, float, float, float]


def exact_match(answer: str, truth: str) -> float:
    """GQA: equal, once punctuation is dropped and case is lowered in the answer."""
    return float(answer.translate(GQA_PUNCTUATION).lower().strip() == truth)


def vqa_normalized(answer: str) -> str:
    """An answer as the official VQA evaluation compares it: signs, articles, number words."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    comma = _NUMBER_COMMA.search(text) is not None
    out = text
    for sign in VQA_PUNCTUATION:
        dropped = comma or f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if dropped else " ")
    out = re.sub(r"\.(?!\d)", "", out)
    words = (NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """VizWiz: over each choice of nine of the ten people, min(1, those who said it / 3); the mean of the ten."""
    normalized = vqa_normalized(answer)
    said = sum(truth == normalized for truth in truths)
    if not said:
        return 0.0
    leaving = [said - (truth == normalized) for truth in truths]
    return sum(min(1.0, others / 3) for others in leaving) / len(truths)


def parse_box(answer: str) -> Box | None:
    """`[x1, y1, x2, y2]` with shares of width and height, a true rectangle; None for anything else."""
    if len(answer) > 200:  # nothing that long is a box, and a deep nest would cost the parser its stack
        return None
    try:
        value = ast.literal_eval(answer.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if (
        not isinstance(value, list)
        or len(value) != 4
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    ):
        return None
    x1, y1, x2, y2 = (float(v) for v in value)
    inside = all(math.isfinite(v) and 0.0 <= v <= 1.0 for v in (x1, y1, x2, y2))
    return (x1, y1, x2, y2) if inside and x1 < x2 and y1 < y2 else None


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two rectangles x1, y1, x2, y2."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    shared = width * height
    return shared / (areas[0] + areas[1] - shared)


def normalized_box(pixels: Sequence[float], size: tuple[int, int]) -> Box:
    """A box in pixels as shares of width and height, rounded to two places as the prompts' boxes are."""
    width, height = size
    x1, y1, x2, y2 = (
        round(value / side, 2) for value, side in zip(pixels, (width, height, width, height), strict=True)
    )
    return x1, y1, x2, y2


def grounded(answer: str, truth: Box, least: float) -> float:
    """RefCOCO+, OCID-Ref: whether the IoU is at least `least`; what is no box is wrong."""
    box = parse_box(answer)
    return float(box is not None and iou(box, truth) >= least)


def chosen(choice: int, truth: int) -> float:
    """VSR, POPE, TallyQA: whether the likeliest option is the right one."""
    return float(choice == truth)


def grouped(scores: Sequence[float], groups: Sequence[str]) -> tuple[float, float | None]:
    """Mean of the groups' means (POPE), and its standard error."""
    parts = [[s for s, g in zip(scores, groups, strict=True) if g == group] for group in dict.fromkeys(groups)]
    return mean_of_means([mean_and_error(part) for part in parts])
