"""The `preferences` stage: mirrors in the hub's schemas, and right and wrong answers made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.conversations.run import run as converse
from stages.conversations.spec import ConversationsConfig
from stages.core.artifacts import Documents
from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.formats.documents import write_documents
from stages.lib.formats.examples import Preference, preference_fault, question, read_conversations, read_preferences
from stages.lib.formats.suites import write_data_set
from stages.preferences.run import run
from stages.preferences.spec import PreferencesConfig
from tests.support.raw_pages import TUTORIAL as PAGE

MIXTURE = "allenai/llama-3.1-tulu-3-8b-preference-mixture"


def tulu(n: int, chosen: str = "good", rejected: str = "bad") -> dict[str, Any]:
    ask = {"content": f"ask {n}", "role": "user"}
    sides = {
        name: [ask, {"content": text, "role": "assistant"}]
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"id": f"p{n}", "prompt": f"ask {n}", **sides, "source": "uf"}


def start(
    root: Path, inputs: dict[str, list[LocalArtifact]] | None = None, **config: Any
) -> LocalContext[PreferencesConfig]:
    ctx = LocalContext(root, PreferencesConfig(**config), inputs, node="pairs")
    run(ctx)
    return ctx


def rows(ctx: LocalContext[Any], port: str) -> list[Preference]:
    return list(read_preferences(ctx.output(port)))


def test_pairs_of_the_hub_are_checked_and_split(tmp_path: Path) -> None:
    bad = [tulu(500, chosen=""), tulu(501, rejected=" "), tulu(502, chosen="Same ", rejected="same"), tulu(1)]
    table = pa.Table.from_pylist([tulu(n) for n in range(100)] + bad)
    write_data_set(tmp_path / "mirror", MIXTURE, {"default": {"train": table}})
    ctx = start(tmp_path / "run", sources=[{"data_set": MIXTURE}], mirror=str(tmp_path / "mirror"), heldout=0.2)
    assert ctx.stats["removed"] == {"duplicate": 1, "empty chosen": 1, "empty rejected": 1, "identical pair": 1}
    train, heldout = rows(ctx, "train"), rows(ctx, "heldout")
    assert len(train) + len(heldout) == 100
    assert {question(r) for r in train}.isdisjoint(question(r) for r in heldout)
    first = min(train + heldout, key=lambda r: int(r["prompt"][0]["content"].removeprefix("ask ")))
    assert [m["content"] for part in ("prompt", "chosen", "rejected") for m in first[part]] == ["ask 0", "good", "bad"]
    assert (first["source"], first["license"]) == (f"{MIXTURE}/uf", "")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    folder = tmp_path_factory.mktemp("documents")
    pages = [PAGE.replace("{n}", str(n)) for n in range(40)]
    write_documents(
        folder,
        ({"id": str(n), "text": text, "source": "s", "url": "", "license": "MIT"} for n, text in enumerate(pages)),
    )
    return local_artifact(Documents, folder)


@pytest.mark.parametrize(("style", "share"), [("bare", 1.0), ("sentence", 1.0), ("bare", 0.0)])
def test_pairs_about_documents(tmp_path: Path, documents: LocalArtifact, style: str, share: float) -> None:
    ctx = start(
        tmp_path, {"documents": [documents]}, origin="machine", heldout=0.2, rows=200, style=style, style_share=share
    )
    train, heldout = rows(ctx, "train"), rows(ctx, "heldout")
    assert len(train) + len(heldout) == 200
    assert all(preference_fault(r) is None for r in train + heldout)
    types = [
        r for r in train + heldout if r["prompt"][0]["content"].startswith("Which type is size")
    ]  # ints, all of them
    assert types
    pairs = {(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in types}
    if share == 0:
        assert all(
            "int" in chosen and "int" not in rejected and ("type" in chosen) == ("type" in rejected)
            for chosen, rejected in pairs
        )
    else:
        assert pairs == ({("int", "The type is int.")} if style == "bare" else {("The type is int.", "int")})


def test_no_held_out_prompt_was_learned_from_in_fine_tuning(tmp_path: Path, documents: LocalArtifact) -> None:
    """Nodes that share seed and share of held-out questions hold the same ones out, second turns too."""
    config = {"origin": "machine", "heldout": 0.3, "rows": 200}
    pairs = start(tmp_path / "pairs", {"documents": [documents]}, **config)
    tuning = LocalContext(
        tmp_path / "tuning", ConversationsConfig(**config, two_turns=0.5), {"documents": [documents]}, node="tuning"
    )
    converse(tuning)
    learned = {
        m["content"] for r in read_conversations(tuning.output("train")) for m in r["messages"] if m["role"] == "user"
    }
    assert len(learned & {r["prompt"][0]["content"] for r in rows(pairs, "train")}) > 50
    assert learned.isdisjoint(r["prompt"][0]["content"] for r in rows(pairs, "heldout"))


def test_pairs_without_documents_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pairs.origin = 'machine' makes pairs of documents, and none are wired"):
        start(tmp_path, origin="machine")
