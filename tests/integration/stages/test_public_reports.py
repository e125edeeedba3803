"""Bugs that users of the peers reported in public, tried here. `docs/bug_reports.md` lists them with where each is
tested.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.core.artifacts import Documents, Tokenizer
from stages.core.errors import InputError
from stages.core.testing import LocalContext, local_artifact
from stages.dedup.run import run as dedup
from stages.dedup.spec import RECIPES, DedupConfig
from stages.dpo.pairs import PairCollator, encode_pairs
from stages.dpo.spec import DpoConfig
from stages.lib.finetuning.encoding import IGNORED, encode_conversations, require_rows
from stages.lib.finetuning.model_loading import PAD, load_tokenizer
from stages.lib.formats import chat_template, vocabulary
from stages.lib.formats.documents import read_documents, write_documents
from stages.lib.formats.examples import Preference, assistant, user
from stages.tokenize.run import run as tokenize
from stages.tokenize.spec import TokenizeConfig
from tests.support import tuning
from tests.support.token_shards import opened

TULU = chat_template.TEMPLATES["tulu"]
WORDS = [
    f"{a}{b}"
    for a in ("bar", "ne", "tolu", "gri", "sal", "ve", "kor", "mi")
    for b in ("da", "stel", "nor", "pi", "gum", "ret", "lo", "ash")
]


def prose(seed: int, words: int = 120) -> str:
    """Paragraphs of twenty words that no other text has, nor shares its words with."""
    rng = random.Random(seed)
    own = [f"{word}{rng.choice('aeiou')}{seed}" for word in WORDS]
    return "\n".join(" ".join(rng.choices(own, k=20)) for _ in range(words // 20))


def documents(folder: Path, texts: list[str], rows_a_part: int | None = None) -> Any:
    folder.mkdir(parents=True)
    write_documents(folder, ({"id": str(n), "text": t, "source": "s"} for n, t in enumerate(texts)))
    return local_artifact(Documents, folder)


# --- deduplication ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_corpus_without_repetition_loses_nothing(tmp_path: Path, recipe: Any) -> None:
    """mlfoundations/dclm#83, #71: a document's own n-grams were in the filter before its paragraphs were asked, and 90
    % went.
    """
    texts = [prose(seed) for seed in range(150)]
    ctx = LocalContext(tmp_path, DedupConfig(recipe=recipe), {"sources": [documents(tmp_path / "in", texts)]})
    dedup(ctx)
    assert [d["text"] for d in read_documents(ctx.output("documents"))] == texts


@pytest.mark.parametrize("recipe", ["slimpajama", "dclm", "the-stack"])
def test_a_source_with_nothing_to_sign_is_no_fault(tmp_path: Path, recipe: Any) -> None:
    """huggingface/datatrove#301: a file whose documents are all too short has no signatures, and the merge stopped
    there.
    """
    texts = [prose(seed) for seed in range(20)]
    inputs = [documents(tmp_path / "short", ["!", "a b"]), documents(tmp_path / "in", [*texts, texts[0]])]
    ctx = LocalContext(tmp_path, DedupConfig(recipe=recipe), {"sources": inputs})
    dedup(ctx)
    kept = [d["text"] for d in read_documents(ctx.output("documents"))]
    assert [text for text in kept if len(text) > 5] == texts


def test_the_last_document_of_the_last_shard_is_kept(tmp_path: Path) -> None:
    """huggingface/datatrove#249: the mark for 'no document' was clustered like one, and its place counted as
    removed.
    """
    texts = [*[prose(seed) for seed in range(30)], prose(3), prose(99)]
    ctx = LocalContext(tmp_path, DedupConfig(recipe="slimpajama"), {"sources": [documents(tmp_path / "in", texts)]})
    dedup(ctx)
    kept = [d["text"] for d in read_documents(ctx.output("documents"))]
    assert kept == [*texts[:30], texts[-1]]


# --- what a tuned model learns
# ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tuning.parent(tmp_path_factory.mktemp("parent"), TULU).path)


def test_the_end_of_an_answer_is_learned_though_rows_are_padded(parent: Path) -> None:
    """huggingface/trl#1623, #3091: with </s> as padding every </s> was masked, and models never learned to stop."""
    tokenizer = load_tokenizer(parent, TULU)
    assert tokenizer.pad_token == PAD != tokenizer.eos_token
    (row,) = encode_conversations(tokenizer, [[user("what"), assistant("it is")]], max_length=100).rows
    learned = [label for label in row["labels"] if label != IGNORED]
    assert learned[-1] == vocabulary.EOS_ID
    assert learned.count(vocabulary.EOS_ID) == 1


def test_an_answer_of_a_pair_ends_once(parent: Path) -> None:
    """huggingface/trl#4908: the end that the template wrote got a second one behind it."""
    tokenizer = load_tokenizer(parent, TULU)
    pair: Preference = {
        "id": "1",
        "source": "s",
        "license": "",
        "prompt": [user("what")],
        "chosen": [assistant("it is")],
        "rejected": [assistant("it is what")],
    }
    (row,) = encode_pairs(tokenizer, [pair], DpoConfig(max_length=100, max_new_tokens=16), None).rows
    for side in ("chosen", "rejected"):
        assert row[f"{side}_ids"].count(vocabulary.EOS_ID) == 1
        last = max(n for n, inside in enumerate(row[f"{side}_mask"]) if inside)
        assert row[f"{side}_ids"][last] == vocabulary.EOS_ID
    batch = PairCollator(vocabulary.UNK_ID)([row])
    ends = (batch["input_ids"] == vocabulary.EOS_ID) & batch["completion_mask"].bool()
    assert ends.sum(1).tolist() == [1, 1], "padding hides no end"


def test_prompt_and_answer_are_the_beginning_and_the_end_of_one_text(parent: Path) -> None:
    """huggingface/trl#1930: a template that was applied to prompt and answer by themselves wrote its opening twice."""
    tokenizer = load_tokenizer(parent, TULU)
    pair: Preference = {
        "id": "1",
        "source": "s",
        "license": "",
        "prompt": [user("what")],
        "chosen": [assistant("it is")],
        "rejected": [assistant("no")],
    }
    (row,) = encode_pairs(tokenizer, [pair], DpoConfig(max_length=100, max_new_tokens=16), None).rows
    for side in ("chosen", "rejected"):
        whole: Any = tokenizer.apply_chat_template([*pair["prompt"], *pair[side]], tokenize=True, return_dict=True)  # type: ignore[literal-required]
        assert row[f"{side}_ids"] == whole["input_ids"]


def test_a_template_that_does_not_mark_answers_is_refused(parent: Path, tmp_path: Path) -> None:
    """NVIDIA-NeMo/Megatron-Bridge#3359: without generation marks the loss was taken on prompts as well, without a
    word.
    """
    bare = TULU.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert bare != TULU
    found = encode_conversations(load_tokenizer(parent, bare), [[user("what"), assistant("it is")]] * 3, max_length=100)
    assert not found.rows
    with pytest.raises(InputError, match="of 3, 3 no assistant turn"):
        require_rows(LocalContext(tmp_path, DpoConfig(), {}), found, "conversations")


def test_the_first_and_the_last_token_of_an_answer_have_a_gradient(parent: Path) -> None:
    """verl-project/verl#3562, OpenRLHF/OpenRLHF#973: a mask that was moved the wrong way lost the end, or the first
    token.
    """
    from stages.lib.finetuning.model_loading import load_model

    tokenizer, model = load_tokenizer(parent, TULU), load_model(parent, torch.device("cpu"))
    (row,) = encode_conversations(tokenizer, [[user("what"), assistant("it is")]], max_length=100).rows
    learned = [n for n, label in enumerate(row["labels"]) if label != IGNORED]
    ids = torch.tensor([row["input_ids"]])
    for position in (learned[0], learned[-1]):
        labels = torch.full_like(ids, IGNORED)
        labels[0, position] = row["labels"][position]
        logits = model(input_ids=ids).logits[0, position - 1].log_softmax(-1)
        assert model(input_ids=ids, labels=labels).loss.item() == pytest.approx(
            -logits[row["input_ids"][position]].item(), rel=1e-5
        )


# --- windows
# ------------------------------------------------------------------------------------------------------------


def test_windows_are_shuffled_over_the_whole_corpus(tmp_path: Path) -> None:
    """allenai/dolma#139: documents were 'shuffled' one at a time, which left them in order."""
    folder = tuning.tokenizer_folder(tmp_path / "tokenizer")
    texts = [f"{n:04d} {prose(n)}" for n in range(400)]
    tokens = local_artifact(
        Tokenizer, folder, {"tokenizer_digest": vocabulary.digest(folder), "vocab_size": tuning.VOCABULARY}
    )
    inputs = {"documents": [documents(tmp_path / "in", texts)], "tokenizer": [tokens]}
    ctx = LocalContext(tmp_path, TokenizeConfig(sequence_length=64, heldout=0), inputs)
    tokenize(ctx)
    shards, library = opened(ctx.output("shards")), vocabulary.load(folder)
    begun = (re.search(r"\b(\d{4}) ", library.decode(ids)) for ids in shards.windows(range(len(shards))).tolist())
    where = [int(found[1]) for found in begun if found]
    assert len(where) > 300
    order = np.argsort(np.argsort(where))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.2
