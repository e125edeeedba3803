"""Pairs made on the spot: a right answer and a wrong one, or a right answer in the wanted style and in the other."""

from __future__ import annotations

import random
from collections.abc import Iterator

from stages.core.context import Context
from stages.core.errors import ConfigError
from stages.lib.data.documentation_facts import extract_facts
from stages.lib.data.licenses import licenses
from stages.lib.data.synthetic_qa import (
    ABOUT_DOCUMENTS,
    TEXT_EDITING,
    QuestionAnswer,
    QuestionGenerator,
    distinct_questions,
    generate_questions,
)
from stages.lib.formats.corpus import stored_documents
from stages.lib.formats.examples import Preference, Reject, assistant, user
from stages.preferences.spec import PreferencesConfig


def generate(ctx: Context[PreferencesConfig], reject: Reject) -> Iterator[Preference]:
    """Pairs of the configured material, up to `rows`."""
    config = ctx.config
    if not ctx.inputs("documents"):
        raise ConfigError(f"{ctx.node}.origin = 'machine' makes pairs of documents, and none are wired to the node")
    documents = [document for artifact in ctx.inputs("documents") for document in stored_documents(artifact.entries())]
    license = licenses(d["license"] for d in documents)
    teacher = QuestionGenerator(extract_facts(documents), config.labels, config.seed)
    rng = random.Random(config.seed)
    number = 0
    for lesson in distinct_questions(
        generate_questions(teacher, ABOUT_DOCUMENTS if config.material == "about" else TEXT_EDITING)
    ):
        name, chosen, rejected = _pair(lesson, config, rng)
        if len(lesson.question) + max(len(chosen), len(rejected)) > config.max_characters:
            continue
        yield {
            "id": f"{name}/{lesson.kind}/{number}",
            "prompt": [user(lesson.question)],
            "chosen": [assistant(chosen)],
            "rejected": [assistant(rejected)],
            "source": f"toy-{name}/{lesson.kind}",
            "license": license,
        }
        number += 1
        if number == config.rows:
            return


def _pair(lesson: QuestionAnswer, config: PreferencesConfig, rng: random.Random) -> tuple[str, str, str]:
    """(what the pair differs in, chosen, rejected)."""
    full = config.style == "sentence"
    if rng.random() < config.style_share:
        return "style", lesson.answer(lesson.fact, full), lesson.answer(lesson.fact, not full)
    full = rng.random() < 0.5
    return "fact", lesson.answer(lesson.fact, full), lesson.answer(rng.choice(lesson.wrong), full)
