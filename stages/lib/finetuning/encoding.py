"""From conversations to token ids and labels, through the tokenizer's own chat template; what is left out is
counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from stages.core.context import Context
from stages.core.errors import InputError
from stages.lib.formats import vocabulary
from stages.lib.formats.examples import Message
from stages.lib.verifier.answer_extraction import THOUGHT_END

IGNORED = -100
"""Label of a token that is not learned (PyTorch's cross-entropy)."""
BATCH = 512
Row = dict[str, list[int]]
T = TypeVar("T")


@dataclass
class Encoded:
    """Rows of ids and labels, and what happened on the way."""

    rows: list[Row] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)  # which of the rows that were seen these are
    seen: int = 0
    truncated: int = 0
    tokens: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    tidied: int = 0  # rows of which an answer began with line feeds

    def stats(self, prefix: str = "") -> dict[str, Any]:
        """For the manifest."""
        kept = len(self.rows)
        return {
            f"{prefix}rows": kept,
            f"{prefix}tokens": self.tokens,
            f"{prefix}truncation_rate": round(self.truncated / kept, 6) if kept else 0.0,
            f"{prefix}removed": dict(sorted(self.removed.items())),
            f"{prefix}leading_line_feeds": self.tidied,
        }


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last one shorter (Python 3.12 has it in itertools)."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part


def spells_control(messages: Iterable[Message]) -> bool:
    """Whether a text holds a control token's spelling. The template's text is tokenized as a whole, so that it would
    *be* one.
    """
    return any(token in message["content"] for message in messages for token in vocabulary.SPECIAL)


def tidy(messages: Sequence[Message]) -> list[Message]:
    """The turns without line feeds at the beginning of an answer.

    The template ends a prompt with a line feed. Where a vocabulary has a piece for two of them, an answer that begins
    with one would be
    learned from another token than the one that it is asked with: the prompt would be no prefix of the text.
    """
    return [{**m, "content": m["content"].lstrip("\r\n")} if m["role"] == "assistant" else m for m in messages]


def thinks_twice(messages: Iterable[Message]) -> bool:
    """Whether an answer closes its thought more than once: what stands after the second is no answer to the verifier
    (nor to DeepScaleR).
    """
    return any(m["role"] == "assistant" and m["content"].count(THOUGHT_END) > 1 for m in messages)


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and assistant mask of whole conversations: what open-instruct and TRL call input_ids and labels."""
    for part in batched(conversations, BATCH):
        turns: Any = [list(c) for c in part]
        out: Any = tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        yield from zip(out["input_ids"], out["assistant_masks"], strict=True)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Token ids of prompts, up to where the assistant begins to write."""
    ids: list[list[int]] = []
    for part in batched(prompts, BATCH):
        turns: Any = [list(c) for c in part]
        out: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, add_generation_prompt=True)
        ids.extend(out["input_ids"])
    return ids


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Sequence[Message]],
    max_length: int,
    max_rows: int | None = None,
) -> Encoded:
    """Ids and labels for SFT. A row longer than max_length loses its end; without a label left it is left out."""
    encoded = Encoded()
    for part in batched(islice(conversations, max_rows), BATCH):
        good: list[tuple[int, Sequence[Message]]] = []
        for position, whole in enumerate(part, encoded.seen):
            if spells_control(whole):
                encoded.removed["spells a control token"] += 1
            elif thinks_twice(whole):
                encoded.removed["closes a thought twice"] += 1
            else:
                good.append((position, tidy(whole)))
                encoded.tidied += good[-1][1] != list(whole)
        encoded.seen += len(part)
        for (position, _), (ids, mask) in zip(good, encode(tokenizer, [c for _, c in good]), strict=True):
            labels = [i if m else IGNORED for i, m in zip(ids, mask, strict=True)][:max_length]
            if not any(mask):
                encoded.removed["no assistant turn"] += 1
            elif all(label == IGNORED for label in labels[1:]):
                encoded.removed["no answer within max_length"] += 1
            else:
                encoded.truncated += len(ids) > max_length
                encoded.tokens += len(labels)
                encoded.rows.append({"input_ids": ids[:max_length], "labels": labels})
                encoded.kept.append(position)
    encoded.removed = +encoded.removed
    return encoded


def selected(rows: Iterable[T], kept: Sequence[int]) -> Iterator[T]:
    """The rows at these positions, which rise."""
    positions = iter(kept)
    position = next(positions, None)
    for number, row in enumerate(rows):
        if number == position:
            yield row
            position = next(positions, None)


def require_rows(ctx: Context[Any], encoded: Encoded, what: str) -> None:
    """Raise InputError when nothing is left, saying why."""
    if encoded.rows:
        return
    why = ", ".join(f"{count} {reason}" for reason, count in encoded.removed.most_common()) or "it has none"
    raise InputError(f"{ctx.node}: no row of its {what} can be used: of {encoded.seen}, {why}")
