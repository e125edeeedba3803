"""Conversations made on the spot: questions about this run's documents, editing tasks, or solutions of its problems."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from stages.conversations.spec import ConversationsConfig
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
from stages.lib.formats.examples import (
    Conversation,
    Message,
    Reject,
    assistant,
    fingerprint,
    in_heldout,
    problem_prompt,
    read_problems,
    trace,
    user,
)


def generate(ctx: Context[ConversationsConfig], reject: Reject) -> Iterator[Conversation]:
    """Conversations of the configured material, up to `rows`."""
    config = ctx.config
    if config.material == "traces":
        yield from _traces(ctx)
        return
    if not ctx.inputs("documents"):
        raise ConfigError(
            f"{ctx.node}.material = '{config.material}' is made of documents, and none are wired to the node"
        )
    documents = [document for artifact in ctx.inputs("documents") for document in stored_documents(artifact.entries())]
    license = licenses(d["license"] for d in documents)
    teacher = QuestionGenerator(extract_facts(documents), config.labels, config.seed)
    kinds = ABOUT_DOCUMENTS if config.material == "about" else TEXT_EDITING
    rng = random.Random(config.seed)
    waiting: dict[bool, list[QuestionAnswer]] = {
        False: [],
        True: [],
    }  # the first of two turns, until one of the same side comes
    number = 0
    for lesson in distinct_questions(generate_questions(teacher, kinds)):
        taken = waiting[in_heldout(fingerprint(lesson.question), config.heldout, config.seed)]
        taken.append(lesson)
        if len(taken) == 1 and rng.random() < config.two_turns:
            continue
        messages = [message for one in taken for message in _turn(one, full=rng.random() < 0.5)]
        taken.clear()
        if sum(len(m["content"]) for m in messages) <= config.max_characters:
            yield {
                "id": f"{lesson.kind}/{number}",
                "messages": messages,
                "source": f"toy-{lesson.kind}",
                "license": license,
            }
            number += 1
        if number == config.rows:
            return


def _turn(lesson: QuestionAnswer, full: bool) -> tuple[Message, Message]:
    return user(lesson.question), assistant(lesson.answer(lesson.fact, full))


def _traces(ctx: Context[ConversationsConfig]) -> Iterator[Conversation]:
    """Problems with a worked solution, first those that are reserved for tests, so that `rows` cuts the others."""
    if not ctx.inputs("problems") or not ctx.inputs("reserved"):
        raise ConfigError(f"{ctx.node}.material = 'traces' is made of problems, and they are not wired to the node")
    reserved, open = (
        [r for r in read_problems(ctx.input(port).path) if r["solution"]] for port in ("reserved", "problems")
    )
    rng = random.Random(ctx.config.seed)
    for row in itertools.islice(itertools.chain(reserved, open), ctx.config.rows):
        said = trace(row["solution"], row["answer"], boxed=rng.random() >= ctx.config.prose)
        messages = [user(problem_prompt(row["problem"], ctx.config.instruction)), assistant(said)]
        yield {"id": f"trace/{row['id']}", "messages": messages, "source": row["source"], "license": row["license"]}
