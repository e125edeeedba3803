"""Reading, checking and writing what post-training learns from: `Conversations`, `Preferences` and `Problems`.

    with ConversationWriter(folder) as writer:
        writer.add({"id": "a/1", "messages": [user("2 + 2?"), assistant("4")], "source": "a", "license": "MIT"})
    for row in read_conversations(folder): ...

Parquet parts of fixed schemas, in a deterministic order, a batch at a time. A row that cannot be learned from has a
*fault* (`conversation_fault` and its siblings name it); `Sieve` lets the rest through once each and counts what it kept
back, by reason.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast

import pyarrow as pa

from stages.lib.formats.parquet_parts import PartWriter, read_rows

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn."""

    role: Role
    content: str


class Conversation(TypedDict):
    """Turns: an optional system's, then user and assistant in turn, an assistant's at the end."""

    id: str
    messages: list[Message]
    source: str
    license: str


class Preference(TypedDict):
    """Two answers to one prompt. The prompt ends with a user's turn; an answer begins and ends with an assistant's."""

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: str
    license: str


class Problem(TypedDict):
    """A problem whose answer a verifier can check. solution: worked, or ''."""

    id: str
    problem: str
    answer: str
    solution: str
    source: str
    license: str


_TEXT = pa.string()
_MESSAGES = pa.list_(
    pa.field(
        "item",
        pa.struct([pa.field("role", _TEXT, nullable=False), pa.field("content", pa.large_string(), nullable=False)]),
        nullable=False,
    )
)


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, type, nullable=False) for name, type in columns.items()])


CONVERSATIONS = _schema(id=_TEXT, messages=_MESSAGES, source=_TEXT, license=_TEXT)
PREFERENCES = _schema(id=_TEXT, prompt=_MESSAGES, chosen=_MESSAGES, rejected=_MESSAGES, source=_TEXT, license=_TEXT)
PROBLEMS = _schema(id=_TEXT, problem=_TEXT, answer=_TEXT, solution=pa.large_string(), source=_TEXT, license=_TEXT)
"""Columns of the three artifacts. id: unique in the artifact; source: data set, or what made the row; license: SPDX or
''.
"""

RowT = TypeVar("RowT", Conversation, Preference, Problem)


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant's turn."""
    return {"role": "assistant", "content": content}


INSTRUCTION = r"Let's think step by step and output the final answer within \boxed{}."
"""What DeepScaleR appends to every problem (its scripts/data; docs/recipe.md)."""


def problem_prompt(problem: str, instruction: str = INSTRUCTION) -> str:
    """The user's turn that asks a problem: the same bytes in reasoning traces, in GRPO and in its evaluation."""
    return f"{problem} {instruction}" if instruction else problem


def trace(solution: str, answer: str, boxed: bool = True) -> str:
    """The assistant's turn that solves a problem: thought between tags, then the boxed answer (docs/recipe.md), or a
    sentence.
    """
    said = f"\\boxed{{{answer}}}" if boxed else f"The answer is {answer}."
    return f"<think>\n{solution}\n</think>\n{said}"


# --- faults -------------------------------------------------------------------------------------------------------


def conversation_fault(row: Conversation) -> str | None:
    """Why a conversation cannot be learned from; None when it can."""
    messages = row["messages"]
    if fault := _turns_fault(messages):
        return fault
    if all(m["role"] != "assistant" for m in messages):
        return "no assistant turn"
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if not _alternate(turns, first="user"):
        return "roles out of order"
    return None if turns[-1]["role"] == "assistant" else "ends with a user's turn"


def preference_fault(row: Preference) -> str | None:
    """Why a pair of answers cannot be learned from; None when it can."""
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not any(m["role"] == "assistant" and _has_text(m["content"]) for m in answer):
            return f"empty {name}"
    for turns in (prompt, chosen, rejected):
        if fault := _turns_fault(turns):
            return "no prompt" if turns is prompt and not turns else fault
    asked = prompt[1:] if prompt[0]["role"] == "system" else prompt
    ordered = (
        _alternate(asked, first="user")
        and _alternate(chosen, first="assistant")
        and _alternate(rejected, first="assistant")
    )
    if not ordered or not asked or asked[-1]["role"] != "user":
        return "roles out of order"
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        return "ends with a user's turn"
    same = len(chosen) == len(rejected) and all(
        normalize(a["content"]) == normalize(b["content"]) for a, b in zip(chosen, rejected, strict=True)
    )
    return "identical pair" if same else None


def problem_fault(row: Problem) -> str | None:
    """Why a problem cannot be learned from; None when it can."""
    if not all(isinstance(row[key], str) for key in ("problem", "answer", "solution")):
        return "content is not text"
    if not all(_encodable(row[key]) for key in ("problem", "answer", "solution")):
        return "invalid characters"
    if not _has_text(row["problem"]):
        return "no problem"
    return None if _has_text(row["answer"]) else "no answer"


def _turns_fault(messages: Sequence[Message]) -> str | None:
    if not messages:
        return "no turns"
    for message in messages:
        if message["role"] not in ROLES:
            return "unknown role"
        if not isinstance(message["content"], str):
            return "content is not text"
        if not _has_text(message["content"]):
            return "empty content"
        if not _encodable(message["content"]):
            return "invalid characters"
    return None


def _alternate(turns: Sequence[Message], first: Role) -> bool:
    """Whether user and assistant speak in turn, `first` first."""
    order = ("user", "assistant") if first == "user" else ("assistant", "user")
    return all(message["role"] == order[number % 2] for number, message in enumerate(turns))


def _has_text(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _encodable(text: str) -> bool:
    """Lone surrogates, which a broken JSON escape gives, are in no UTF-8 file."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# --- sameness -----------------------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """Text in which sameness is judged: Unicode's compatibility form, no case, runs of whitespace as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprint(*texts: str) -> bytes:
    """16 bytes that normalised texts share when they are the same."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(normalize(text).encode("utf-8", "replace") + b"\0")
    return digest.digest()


def question(row: Conversation | Preference | Problem) -> bytes:
    """Fingerprint of what is asked: the first user's turn, or the problem. Rows that share it stay on one side of a
    split.
    """
    if "problem" in row:
        return fingerprint(cast(Problem, row)["problem"])
    messages = row["messages"] if "messages" in row else cast(Preference, row)["prompt"]
    return fingerprint(next((m["content"] for m in messages if m["role"] == "user"), ""))


def whole(row: Conversation | Preference | Problem) -> bytes:
    """Fingerprint of everything that a duplicate repeats; of a problem, its text alone."""
    if "problem" in row:
        return question(row)
    if "messages" in row:
        return fingerprint(*(f"{m['role']} {m['content']}" for m in row["messages"]))
    pair = cast(Preference, row)
    return fingerprint(
        *(f"{part} {m['role']} {m['content']}" for part in ("prompt", "chosen", "rejected") for m in pair[part])
    )


def held_out(row: Conversation | Preference | Problem, share: float, seed: int) -> bool:
    """Whether a row belongs to the held-out part: by what it asks, so the same question is never on both sides."""
    return in_heldout(question(row), share, seed)


def in_heldout(mark: bytes, share: float, seed: int) -> bool:
    """Whether the question with this fingerprint is held out. Stages that share `share` and `seed` agree on it."""
    digest = hashlib.blake2b(mark, digest_size=8, salt=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") < share * 2**64


Reject = Callable[[str], None]
"""Takes the reason why a row cannot be used."""


class Sieve(Generic[RowT]):
    """Let each good row through once. `removed` counts the others by reason, `kept` what went through.

    Remembers 16 bytes a row: 940,000 conversations are some 100 MB.
    """

    def __init__(self, fault: Callable[[RowT], str | None]) -> None:
        self.kept, self.removed = 0, Counter[str]()
        self._fault, self._seen = fault, set[bytes]()

    def reject(self, reason: str) -> None:
        """Count a row that could not even be read."""
        self.removed[reason] += 1

    def __call__(self, rows: Iterable[RowT]) -> Iterator[RowT]:
        for row in rows:
            reason = self._fault(row)
            if reason is None:
                mark = whole(row)
                reason = "duplicate" if mark in self._seen else None
                self._seen.add(mark)
            if reason is None:
                self.kept += 1
                yield row
            else:
                self.reject(reason)


# --- files --------------------------------------------------------------------------------------------------------


class ExampleWriter(PartWriter, Generic[RowT]):
    """Base of the three writers: a context manager, `add` appends a row."""

    columns: pa.Schema

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, self.columns)
        self.text_bytes = 0

    def add(self, row: RowT) -> None:
        """Append one row."""
        values: dict[str, Any] = dict(row)
        size = sum(_text_bytes(value) for value in values.values())
        self.text_bytes += size
        self.append(tuple(values[name] for name in self.columns.names), size)


def _text_bytes(value: str | list[Message]) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return sum(len(m["content"].encode()) + len(m["role"]) for m in value)


class ConversationWriter(ExampleWriter[Conversation]):
    """Write conversations into `part-NNNNN.parquet`. Same rows, same bytes."""

    columns = CONVERSATIONS


class PreferenceWriter(ExampleWriter[Preference]):
    """Write pairs of answers into `part-NNNNN.parquet`. Same rows, same bytes."""

    columns = PREFERENCES


class ProblemWriter(ExampleWriter[Problem]):
    """Write problems into `part-NNNNN.parquet`. Same rows, same bytes."""

    columns = PROBLEMS


def read_conversations(folder: Path) -> Iterator[Conversation]:
    """Yield conversations, in order."""
    return cast(Iterator[Conversation], read_rows(folder))


def read_preferences(folder: Path) -> Iterator[Preference]:
    """Yield pairs of answers, in order."""
    return cast(Iterator[Preference], read_rows(folder))


def read_problems(folder: Path) -> Iterator[Problem]:
    """Yield problems, in order."""
    return cast(Iterator[Problem], read_rows(folder))
