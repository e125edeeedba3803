"""Conversations made on the spot: questions about this run's documents, editing tasks, or solutions of its problems."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from stages.conversations.spec import ConversationsConfig
from stages.core.contracts import ConfigError, Context
from stages.data.lessons import ABOUT, EDITING, Lesson, Teacher, distinct, lessons
from stages.data.licenses import licenses
from stages.data.passages import gather
from stages.formats.documents import read_documents
from stages.formats.examples import (
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


def made(ctx: Context[ConversationsConfig], reject: Reject) -> Iterator[Conversation]:
    """Conversations of the configured material, up to `rows`."""
    config = ctx.config
    if config.material == "traces":
        yield from _traces(ctx)
        return
    if not ctx.inputs("documents"):
        raise ConfigError(f"{ctx.node}.material = '{config.material}' is made of documents, and none are wired to the node")
    documents = list(itertools.chain.from_iterable(read_documents(artifact.path) for artifact in ctx.inputs("documents")))
    license = licenses(d["license"] for d in documents)
    teacher = Teacher(gather(documents), config.labels, config.seed)
    kinds = ABOUT if config.material == "about" else EDITING
    rng = random.Random(config.seed)
    waiting: dict[bool, list[Lesson]] = {False: [], True: []}  # the first of two turns, until one of the same side comes
    number = 0
    for lesson in distinct(lessons(teacher, kinds)):
        taken = waiting[in_heldout(fingerprint(lesson.question), config.heldout, config.seed)]
        taken.append(lesson)
        if len(taken) == 1 and rng.random() < config.two_turns:
            continue
        messages = [message for one in taken for message in _turn(one, full=rng.random() < 0.5)]
        taken.clear()
        if sum(len(m["content"]) for m in messages) <= config.max_characters:
            yield {"id": f"{lesson.kind}/{number}", "messages": messages, "source": f"machine/{lesson.kind}", "license": license}
            number += 1
        if number == config.rows:
            return


def _turn(lesson: Lesson, full: bool) -> tuple[Message, Message]:
    return user(lesson.question), assistant(lesson.say(lesson.fact, full))


def _traces(ctx: Context[ConversationsConfig]) -> Iterator[Conversation]:
    """Problems with a worked solution, first those that are reserved for tests, so that `rows` cuts the others."""
    if not ctx.inputs("problems") or not ctx.inputs("reserved"):
        raise ConfigError(f"{ctx.node}.material = 'traces' is made of problems, and they are not wired to the node")
    reserved, open = ([r for r in read_problems(ctx.input(port).path) if r["solution"]] for port in ("reserved", "problems"))
    rng = random.Random(ctx.config.seed)
    for row in itertools.islice(itertools.chain(reserved, open), ctx.config.rows):
        said = trace(row["solution"], row["answer"], boxed=rng.random() >= ctx.config.prose)
        messages = [user(problem_prompt(row["problem"], ctx.config.instruction)), assistant(said)]
        yield {"id": f"trace/{row['id']}", "messages": messages, "source": row["source"], "license": row["license"]}
