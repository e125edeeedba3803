"""Prismatic's prompts, and conversations as token ids: `<s> [patches] In: {question}\\nOut: {answer}</s>`.

Text is encoded turn by turn with control tokens off: '<image>' or '</s>' in a question is text, never an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from stages.lib.formats.vocabulary import BOS_ID, EOS_ID
from stages.lib.vision.conversations import IMAGE, Turn

IGNORED = -100
"""Label of a token that is no answer (PyTorch's cross-entropy leaves it out)."""
SHORT = "\nAnswer the question using a single word or phrase."
COUNTS = 16
"""TallyQA's answers are 0 to 15: options A to P."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation and their labels; image ids are among them where patches go."""

    ids: list[int]
    labels: list[int]

    @property
    def answer_tokens(self) -> int:
        """Tokens that the loss is taken of."""
        return sum(label != IGNORED for label in self.labels)


def short_answer(question: str) -> str:
    """GQA, POPE."""
    return f"\n{question}{SHORT}"


def uncertain(question: str) -> str:
    """VizWiz."""
    return f"\n{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT}"


def true_or_false(statement: str) -> str:
    """VSR."""
    return (
        f'\nBased on the image, is this statement "True" or "False"? {statement}\nRespond with "True" or "False"'
        " directly."
    )


def region(expression: str) -> str:
    """RefCOCO+, OCID-Ref."""
    return f'\nPlease provide the bounding box coordinate of the region this sentence describes: "{expression}"'


def letters(count: int = COUNTS) -> list[str]:
    """A, B, .. of a multiple choice."""
    return [chr(ord("A") + number) for number in range(count)]


def counting(question: str) -> str:
    """TallyQA, as a multiple choice."""
    options = "\n".join(f"{letter}. {number}" for number, letter in enumerate(letters()))
    return f"\n{question}\n{options}\nAnswer with the option's letter from the given choices directly."


def box(corners: Sequence[float]) -> str:
    """A region as an answer: corners x1, y1, x2, y2 as shares of width and height."""
    return "[" + ", ".join(f"{value:.2f}" for value in corners) + "]"


def question_ids(tokenizer: Tokenizer, message: str) -> list[int]:
    """A human turn, up to where the answer begins."""
    text = f"In: {message.replace(IMAGE, '').strip()}\nOut:"
    return tokenizer.encode(text, add_special_tokens=False).ids


def answer_ids(tokenizer: Tokenizer, message: str) -> list[int]:
    """A model's turn, without its end token."""
    return tokenizer.encode(message.replace(IMAGE, "").strip(), add_special_tokens=False).ids


def prompt_ids(tokenizer: Tokenizer, message: str, image_id: int, patches: int) -> list[int]:
    """A question about an image, ready to be answered; patches = 0: without an image."""
    return [BOS_ID, *[image_id] * patches, *question_ids(tokenizer, message)]


def encode(tokenizer: Tokenizer, turns: Sequence[Turn], image_id: int, patches: int, max_length: int) -> Encoded:
    """A conversation with its labels, cut at max_length tokens; the loss is of answers and their end tokens only."""
    ids = [BOS_ID, *[image_id] * patches]
    labels = [IGNORED] * len(ids)
    for turn in turns:
        if turn.human:
            part = question_ids(tokenizer, turn.text)
            labels += [IGNORED] * len(part)
        else:
            part = [*answer_ids(tokenizer, turn.text), EOS_ID]
            labels += part
        ids += part
    return Encoded(ids[:max_length], labels[:max_length])
