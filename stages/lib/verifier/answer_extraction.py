"""Finding the answer in a response: after the thought, in the last box."""

from __future__ import annotations

import re

MAX_CHARACTERS = 512
"""Length of an answer that is looked at (declared): a longer one is no answer, and what reads it may take time that
grows with its square.
"""
THOUGHT_END = "</think>"
_BRACE = re.compile(r"[{}]")
_BOXES = ("\\boxed", "\\fbox")


def after_thought(response: str) -> str | None:
    """What follows the thought: between the first and the second `</think>`, as DeepScaleR's reward takes it; None
    without one.
    """
    parts = response.split(THOUGHT_END, 2)
    return parts[1] if len(parts) > 1 else None


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{..}` or `\fbox{..}`, braces matched; None when there is none or it is not
    closed.

    Time is linear in the length of the text. `\boxed 5`, without braces, is no box.
    """
    start = max(text.rfind(box) for box in _BOXES)
    if start < 0:
        return None
    depth = 0
    opened = None
    for brace in _BRACE.finditer(text, start):
        at = brace.start()
        if text[at] == "{":
            depth += 1
            opened = at if opened is None else opened
        else:
            depth -= 1
            if depth <= 0:
                return (
                    None
                    if opened is None or text[start:opened].strip() not in _BOXES
                    else text[opened + 1 : at].strip()
                )
    return None


def in_format(response: str) -> bool:
    """Whether a response has the form that is asked for: a closed thought, and a boxed answer after it."""
    rest = after_thought(response)
    return rest is not None and bool(last_boxed(rest))
