"""What is shown at a terminal: any text at all, as it is, and nothing that moves the cursor or changes colours."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from rich.tree import Tree

from flows.console import RunDisplay, rows_table
from flows.terminal_text import counted, line, literal

MARKUP = [
    "[/mirror/vg]",
    "[node.x]",
    "[rank0]",
    "[/]",
    "[bold red]x[/bold red]",
    "[link=file:///etc]y",
    ":smile:",
    "\\[x]",
    "[" * 50,
    "a\\",
]
CONTROL = [
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\r\x1b[31mred",
    "\u202egnp.exe",
    "\ud800",
    "\x9b31m",
    "tab\there",
    "\x00",
    "\x7f",
    "\u2028",
]
texts = st.one_of(
    st.text(st.characters()),
    st.sampled_from(MARKUP + CONTROL),
    st.lists(st.sampled_from([*MARKUP, *CONTROL, "word"])).map(" ".join),
)


def screen(terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=100_000, force_terminal=terminal, color_system=None, legacy_windows=False), stream


def unstyled(text: str) -> str:
    """What a person reads: without the display's own styles, and without the spaces that pad lines."""
    return "\n".join(row.rstrip() for row in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n"))


def expected(text: str) -> str:
    return "\n".join(row.rstrip() for row in literal(text).split("\n"))


@given(texts)
@example("[/mirror/vg] is a mirror; [node.x] [rank0] [/]")
def test_whatever_a_stage_logs_is_shown_as_it_is(text: str) -> None:
    console, stream = screen()
    with RunDisplay(console, 1) as display:
        display.event("x", {"event": "log", "level": "warning", "message": text})
        display.event("x", {"event": "state", "state": "failed", "message": text})
    shown = unstyled(stream.getvalue())
    assert shown.count(expected(text)) >= (2 if expected(text) else 0)
    stream.getvalue().encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stream.getvalue())


@given(st.lists(texts))
def test_a_log_is_read_back_row_by_row_whatever_is_in_it(messages: list[str]) -> None:
    """As flows/execute.py writes it. The last row is just being written."""
    from flows.log_lines import LineCutter

    rows = "".join(json.dumps({"message": message}, ensure_ascii=False) + "\n" for message in messages)
    raw = rows.encode("utf-8", "backslashreplace")
    assert [json.loads(row)["message"] for row in LineCutter().lines(raw + b'{"mess')] == messages


@given(texts)
def test_a_live_display_takes_any_text(text: str) -> None:
    console, stream = screen(terminal=True)
    with RunDisplay(console, 1) as display:
        display.event(text, {"event": "state", "state": "running", "message": text})
        display.event(text, {"event": "metric", "step": text, "values": {"loss": 1.0}})
        display.event(text, {"event": "progress", "done": 1, "total": 2})
        display.event(text, {"event": "log", "level": "error", "message": text})
        display.event(text, {"event": "state", "state": "done", "seconds": 1.0})
    assert expected(text) in unstyled(stream.getvalue())


@given(texts)
def test_tables_trees_and_lines_take_any_text(text: str) -> None:
    console, stream = screen()
    console.print(rows_table([{"name": text, "why": text}]))
    console.print(line("a ", (text, "bold")))
    console.print(Tree(line(text)))
    assert unstyled(stream.getvalue()).count(expected(text).split("\n")[0]) >= (4 if expected(text) else 0)


@pytest.mark.parametrize("text", CONTROL)
def test_a_control_character_is_shown_and_not_sent(text: str) -> None:
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e\u2028\ud800]", literal(text))


def test_lines_of_a_message_stay_lines() -> None:
    assert literal("one\ntwo") == "one\ntwo"


def test_the_command_line_prints_no_markup() -> None:
    """Its consoles are made so that a bare string is text, wherever one is printed."""
    from flows.cli import common

    consoles: list[Any] = [common.out, common.err]
    assert [console._markup or console._emoji for console in consoles] == [False] * 2


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 nodes"), (1, "1 node"), (1.0, "1 node"), (2, "2 nodes"), (12_345.0, "12,345 nodes")]
)
def test_one_thing_is_no_plural(number: float, text: str) -> None:
    assert counted(number, "node") == text
