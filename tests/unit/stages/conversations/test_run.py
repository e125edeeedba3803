"""The `conversations` stage: mirrors in the hub's schemas, and material made on the spot."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.conversations.run import run
from stages.conversations.spec import ConversationsConfig
from stages.core.artifacts import Documents, Problems
from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats.documents import write_documents
from stages.lib.formats.examples import (
    Conversation,
    ProblemWriter,
    assistant,
    conversation_fault,
    question,
    read_conversations,
    user,
)
from stages.lib.formats.suites import write_data_set
from tests.support.raw_pages import TUTORIAL as PAGE

TULU, INFINITY, THOUGHTS = "allenai/tulu-3-sft-mixture", "BAAI/Infinity-Instruct", "open-thoughts/OpenThoughts-114k"


def tulu(n: int) -> dict[str, Any]:
    return {
        "id": f"t{n}",
        "messages": [{"content": f"ask {n}", "role": "user"}, {"content": f"say {n}", "role": "assistant"}],
        "source": "flan",
    }


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Two data sets in the hub's own schemas, with rows that cannot be learned from."""
    bad = [
        {"id": "b0", "messages": [{"content": "only a question", "role": "user"}], "source": "flan"},
        {
            "id": "b1",
            "messages": [{"content": "x", "role": "assistant"}, {"content": "y", "role": "user"}],
            "source": "flan",
        },
        {
            "id": "b2",
            "messages": [{"content": "x", "role": "user"}, {"content": "", "role": "assistant"}],
            "source": "flan",
        },
        {"id": "b3", "messages": None, "source": "flan"},
        tulu(0),
    ]
    folder = tmp_path / "mirror"
    write_data_set(folder, TULU, {"default": {"train": pa.Table.from_pylist([tulu(n) for n in range(200)] + bad)}})
    card = folder / TULU / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: odc-by\n", 1))
    rows = [
        {"id": n, "conversations": [{"from": "human", "value": f"do {n}"}, {"from": "gpt", "value": f"done {n}"}]}
        for n in range(100)
    ]
    write_data_set(folder, INFINITY, {"7M": {"train": pa.Table.from_pylist(rows)}})
    return folder


def start(
    root: Path, inputs: dict[str, list[LocalArtifact]] | None = None, **config: Any
) -> LocalContext[ConversationsConfig]:
    ctx = LocalContext(root, ConversationsConfig(**config), inputs, node="instructions")
    run(ctx)
    return ctx


def rows(ctx: LocalContext[Any], port: str) -> list[Conversation]:
    return list(read_conversations(ctx.output(port)))


def test_data_sets_are_mixed_checked_and_split(tmp_path: Path, mirror: Path) -> None:
    sources = [
        {"data_set": TULU},
        {"data_set": INFINITY, "config": "7M", "fraction": 0.5, "cap": 40, "license": "CC-BY-SA-4.0"},
    ]
    ctx = start(tmp_path / "run", sources=sources, mirror=str(mirror), heldout=0.2)
    train, heldout = rows(ctx, "train"), rows(ctx, "heldout")
    assert ctx.stats["removed"] == {
        "duplicate": 1,
        "empty content": 1,
        "no assistant turn": 1,
        "no turns": 1,
        "roles out of order": 1,
    }
    assert len(train) + len(heldout) == 240 == ctx.stats["rows"] - 5
    assert 20 < len(heldout) < 80
    assert {question(r) for r in train}.isdisjoint(question(r) for r in heldout)
    assert {(r["source"], r["license"]) for r in train} == {
        (f"{TULU}/flan", "odc-by"),
        (f"{INFINITY}/7M", "CC-BY-SA-4.0"),
    }
    assert len({r["id"] for r in train + heldout}) == 240
    assert all(conversation_fault(r) is None for r in train + heldout)
    counts = {one["data_set"]: (one["rows"], one["taken"]) for one in ctx.stats["sources"]}
    assert counts == {TULU: (205, 205), f"{INFINITY}/7M": (100, 40)}
    assert sum(ctx.meta["train"]["per_source"].values()) == len(train) == ctx.meta["train"]["rows"]
    assert ctx.meta["train"]["per_license"] == Counter(row["license"] for row in train)


def test_the_sources_are_spread_over_the_whole(tmp_path: Path, mirror: Path) -> None:
    sources = [{"data_set": TULU}, {"data_set": INFINITY, "config": "7M"}]
    ctx = start(tmp_path / "run", sources=sources, mirror=str(mirror))
    places = [n for n, r in enumerate(rows(ctx, "train")) if r["source"].startswith(INFINITY)]
    assert 0.35 < sum(places) / len(places) / ctx.stats["train"] < 0.65
    assert places[0] < 30
    assert places[-1] > ctx.stats["train"] - 30


def test_the_seed_decides_what_is_drawn(tmp_path: Path, mirror: Path) -> None:
    def taken(name: str, **config: Any) -> tuple[str, set[str]]:
        ctx = start(
            tmp_path / name, sources=[{"data_set": TULU, "fraction": 0.3}], mirror=str(mirror), heldout=0.2, **config
        )
        part = ctx.output("train") / "part-00000.parquet"
        return hashlib.sha256(part.read_bytes()).hexdigest(), {r["messages"][0]["content"] for r in rows(ctx, "train")}

    assert taken("one")[0] == taken("two")[0]
    assert taken("other", seed=12)[1] != taken("one-again")[1]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"sources": [{"data_set": "no/such"}]}, ConfigError, "instructions.mirror = '.*' has no folder no/such"),
        (
            {"sources": [{"data_set": TULU, "split": "test"}]},
            InputError,
            f"{TULU}, configuration default, has no split 'test', only train",
        ),
        (
            {"sources": [{"data_set": TULU, "config": "other"}]},
            InputError,
            f"{TULU}, configuration other cannot be had from the mirror",
        ),
    ],
)
def test_what_cannot_be_had_is_named(
    tmp_path: Path, mirror: Path, config: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        start(tmp_path / "run", mirror=str(mirror), **config)


def test_a_mixture_with_nothing_left_says_why(tmp_path: Path) -> None:
    rows = [{"id": str(n), "messages": [{"content": "q", "role": "user"}], "source": "s"} for n in range(3)]
    write_data_set(tmp_path / "mirror", TULU, {"default": {"train": pa.Table.from_pylist(rows)}})
    with pytest.raises(InputError, match=r"no row is left for train of 3 \(3 no assistant turn\)"):
        start(tmp_path / "run", sources=[{"data_set": TULU}], mirror=str(tmp_path / "mirror"))


def test_hub_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"instructions.sources is empty: list at least one data set"):
        start(tmp_path)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    folder = tmp_path_factory.mktemp("documents")
    pages = [PAGE.replace("{n}", str(n)) for n in range(40)] + [
        f"The first {w} of a line is here for the test." for w in ("one", "two", "cat")
    ]
    write_documents(
        folder,
        ({"id": str(n), "text": text, "source": "s", "url": "", "license": "MIT"} for n, text in enumerate(pages)),
    )
    return local_artifact(Documents, folder)


def test_conversations_about_documents(tmp_path: Path, documents: LocalArtifact) -> None:
    config = {"origin": "machine", "heldout": 0.2, "rows": 300, "two_turns": 0.3}
    ctx = start(tmp_path / "one", {"documents": [documents]}, **config)
    train, heldout = rows(ctx, "train"), rows(ctx, "heldout")
    assert len(train) + len(heldout) == 300
    asked = [[m["content"] for r in part for m in r["messages"] if m["role"] == "user"] for part in (train, heldout)]
    assert set(asked[0]).isdisjoint(asked[1])  # the second questions too
    assert len(asked[0]) == len(set(asked[0]))
    assert any(len(r["messages"]) == 4 for r in train)
    assert all(sum(len(m["content"]) for m in r["messages"]) <= 240 for r in train)
    by_question = dict(
        zip(asked[0], [m["content"] for r in train for m in r["messages"] if m["role"] == "assistant"], strict=True)
    )
    types = [(q, a) for q, a in by_question.items() if q.startswith("Which type is size")]
    assert types
    assert all(a in ("int", "The type is int.") for _, a in types)
    assert ctx.meta["train"]["per_source"].keys() == {"toy-type", "toy-role", "toy-section", "toy-meaning"}
    again = start(tmp_path / "two", {"documents": [documents]}, **config)
    assert rows(again, "train") == train


def test_traces_are_made_of_problems_and_keep_the_reserved_ones_out(tmp_path: Path) -> None:
    inputs = {}
    for port, numbers in (("problems", range(20)), ("reserved", range(20, 26))):
        folder = tmp_path / port
        folder.mkdir()
        with ProblemWriter(folder) as writer:
            for n in numbers:
                solution = f"{n} + 1 = {n + 1}." if n != 5 else ""
                writer.add(
                    {
                        "id": str(n),
                        "problem": f"{n} + 1?",
                        "answer": str(n + 1),
                        "solution": solution,
                        "source": "m",
                        "license": "",
                    }
                )
        inputs[port] = [local_artifact(Problems, folder)]
    ctx = start(tmp_path / "run", inputs, origin="machine", material="traces", instruction="Box it.")
    train, heldout = rows(ctx, "train"), rows(ctx, "heldout")
    assert train[0]["messages"] == [user("0 + 1? Box it."), assistant("<think>\n0 + 1 = 1.\n</think>\n\\boxed{1}")]
    assert [r["id"] for r in heldout] == [f"trace/{n}" for n in range(20, 26)]
    assert len(train) == 19  # one has no solution
    ctx = start(tmp_path / "prose", inputs, origin="machine", material="traces", instruction="", prose=0.5)
    said = [
        row["messages"][-1]["content"].rpartition("</think>\n")[2]
        for part in ("train", "heldout")
        for row in rows(ctx, part)
    ]
    boxed = sum(text.startswith("\\boxed{") for text in said)
    assert 5 <= boxed <= 20
    assert sum(text.startswith("The answer is ") for text in said) == len(said) - boxed


def test_conversations_that_ask_what_tests_ask_are_removed(tmp_path: Path) -> None:
    long = "A train leaves the town of Ulm at nine and reaches the town of Bonn at noon on the same day."
    folder = tmp_path / "reserved"
    folder.mkdir()
    with ProblemWriter(folder) as writer:
        for n, problem in enumerate((long, "What is 3 + 5?")):
            writer.add({"id": str(n), "problem": problem, "answer": "1", "solution": "", "source": "s", "license": ""})
    asked = [
        f"Return your answer in a box. {long.upper()} How long does it take?",
        "what is  3 + 5?",
        "What is 3 - 5?",
        "A train leaves the town of Ulm at ten and is late.",
    ]
    rows = [{"id": str(n), "messages": [user(text), assistant("x")], "source": "s"} for n, text in enumerate(asked)]
    rows += [{"id": f"f{n}", "messages": [user(f"filler {n}"), assistant("x")], "source": "s"} for n in range(60)]
    write_data_set(tmp_path / "mirror", TULU, {"default": {"train": pa.Table.from_pylist(rows)}})
    inputs = {"reserved": [local_artifact(Problems, folder)]}
    ctx = start(tmp_path / "run", inputs, sources=[{"data_set": TULU}], mirror=str(tmp_path / "mirror"), heldout=0.2)
    assert ctx.stats["removed"] == {"reserved for tests": 2}
    kept = {r["messages"][0]["content"] for port in ("train", "heldout") for r in read_conversations(ctx.output(port))}
    assert set(asked[2:]) <= kept


@pytest.mark.parametrize("material", ["about", "editing", "traces"])
def test_material_that_is_not_wired_is_named(tmp_path: Path, material: str) -> None:
    with pytest.raises(ConfigError, match=rf"instructions.material = '{material}'.* wired to the node"):
        start(tmp_path, origin="machine", material=material)
