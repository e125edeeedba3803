"""Questions about a scene, one maker for each benchmark's type, with the answer that the scene gives.

| type | asks | answer |
| --- | --- | --- |
| gqa | the colour of a shape, the shape of a colour | a word |
| vizwiz | the colour of a shape that is there in half of the cases | a word, or 'unanswerable' |
| refcoco | where a thing is | its box |
| ocid | where the thing beside another one is | its box |
| vsr | whether one thing is left of, right of, above or below another | True, False |
| pope | whether a thing is there (half of the time it is) | Yes, No |
| tallyqa | how many things there are, or of a colour | a letter |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.image_data.scenes import COLORS, SHAPES, THINGS, Scene, Thing
from stages.lib.vision import prompts

RELATIONS = ("left of", "right of", "above", "below")
POPE_KINDS = ("adversarial", "popular", "random")


@dataclass(frozen=True)
class Asked:
    """A question in a benchmark's own words, its answer as the model should write it, and what the benchmark's file
    needs.
    """

    question: str
    answer: str
    facts: Mapping[str, Any]

    def prompt(self, type: str) -> str:
        """The question as the model is asked it."""
        return PROMPTS[type](self.question)


def gqa(rng: random.Random, scene: Scene) -> Asked | None:
    """None where the question would not have one answer."""
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        if len(scene.named(shape=thing.shape)) > 1:
            return None
        return Asked(f"What color is the {thing.shape}?", thing.color, {})
    if len(scene.named(color=thing.color)) > 1:
        return None
    return Asked(f"What shape is the {thing.color} object?", thing.shape, {})


def vizwiz(rng: random.Random, scene: Scene) -> Asked | None:
    """Half of the questions cannot be answered."""
    there = [shape for shape in SHAPES if len(scene.named(shape=shape)) == 1]
    absent = [shape for shape in SHAPES if not scene.named(shape=shape)]
    shapes = there if rng.random() < 0.5 else absent
    if not shapes:
        return None
    shape = rng.choice(shapes)
    answer = scene.named(shape=shape)[0].color if shapes is there else "unanswerable"
    return Asked(f"What color is the {shape}?", answer, {"answerable": int(shapes is there)})


def refcoco(rng: random.Random, scene: Scene) -> Asked | None:
    """A thing by its name."""
    thing = rng.choice(scene.things)
    return Asked(thing.name, prompts.box([value / scene.size for value in thing.box]), {"box": thing.box})


def ocid(rng: random.Random, scene: Scene) -> Asked | None:
    """A thing by its shape and its neighbour."""
    pairs = [(a, b, r) for a in scene.things for b in scene.things for r in RELATIONS if a != b and holds(a, b, r)]
    if not pairs:
        return None
    thing, other, relation = rng.choice(pairs)
    if any(t.shape == thing.shape and t != thing and holds(t, other, relation) for t in scene.things):
        return None
    answer = prompts.box([value / scene.size for value in thing.box])
    return Asked(f"the {thing.shape} {relation} the {other.name}", answer, {"box": thing.box})


def holds(one: Thing, other: Thing, relation: str) -> bool:
    """Whether `one` is in that relation to `other`, in the same row or column."""
    if relation in ("left of", "right of"):
        return (
            one.row == other.row
            and (one.column < other.column) == (relation == "left of")
            and one.column != other.column
        )
    return one.column == other.column and (one.row < other.row) == (relation == "above") and one.row != other.row


def vsr(rng: random.Random, scene: Scene) -> Asked | None:
    """Half of the statements are true."""
    pairs = [(a, b) for a in scene.things for b in scene.things if a != b and (a.row == b.row or a.column == b.column)]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    axis = RELATIONS[:2] if one.row == other.row else RELATIONS[2:]
    relation = rng.choice(axis)
    truth = holds(one, other, relation)
    facts = {"relation": relation, "subj": one.name, "obj": other.name, "label": int(truth)}
    return Asked(f"The {one.name} is {relation} the {other.name}.", str(truth), facts)


def pope(rng: random.Random, scene: Scene, kind: str = "random") -> Asked | None:
    """Half of the things asked for are there. The absent ones: any (random), the commonest of all scenes (popular: here
    all are equally common, so the same one always), or one that shares colour or shape with a thing that is there
    (adversarial).
    """
    present = [thing.name for thing in scene.things]
    absent = [name for name in THINGS if name not in present]
    if rng.random() < 0.5:
        name, answer = rng.choice(present), "Yes"
    else:
        if kind == "adversarial":
            absent = [name for name in absent if any(set(name.split()) & set(p.split()) for p in present)]
        elif kind == "popular":
            absent = absent[:3]
        if not absent:
            return None
        name, answer = rng.choice(absent), "No"
    return Asked(f"Is there a {name} in the image?", answer, {"label": answer.lower(), "kind": kind})


def tallyqa(rng: random.Random, scene: Scene) -> Asked | None:
    """All things, or those of one colour."""
    color = rng.choice([*COLORS, None, None, None, None])
    count = len(scene.named(color=color))
    question = f"How many {color + ' ' if color else ''}objects are there?"
    return Asked(question, prompts.letters()[count], {"answer": count, "simple": color is None})


Maker = Callable[[random.Random, Scene], Asked | None]
MAKERS: Mapping[str, Maker] = {
    "gqa": gqa,
    "vizwiz": vizwiz,
    "refcoco": refcoco,
    "ocid": ocid,
    "vsr": vsr,
    "pope": pope,
    "tallyqa": tallyqa,
}
WEIGHTS: Mapping[str, float] = {"gqa": 4, "vizwiz": 1, "refcoco": 4, "ocid": 1, "vsr": 0.5, "pope": 0.5, "tallyqa": 0.2}
"""How often a type is drawn for training. A small model learns little of what it sees a few hundred times, and
TallyQA's prompt of sixteen options costs twice as many tokens as any other.
"""
PROMPTS: Mapping[str, Callable[[str], str]] = {
    "gqa": prompts.short_answer,
    "vizwiz": prompts.uncertain,
    "refcoco": prompts.region,
    "ocid": prompts.region,
    "vsr": prompts.true_or_false,
    "pope": prompts.short_answer,
    "tallyqa": prompts.counting,
}
