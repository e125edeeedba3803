"""DeepScaleR's pipeline in `problems`: what cannot be graded goes, what was said before goes, and every step is
counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import ConfigError
from stages.core.testing import LocalContext
from stages.lib.formats.examples import read_problems
from stages.lib.formats.suites import write_data_set
from stages.problems import embedding
from stages.problems.embedding import embedder, ngrams, redundant
from stages.problems.pipeline import ungradable
from stages.problems.run import run
from stages.problems.spec import ProblemsConfig
from tests.support.examples import max_examples

DEEPSCALER = "agentica-org/DeepScaleR-Preview-Dataset"


@pytest.mark.parametrize(
    ("problem", "answer", "reason"),
    [
        ("What is 2 + 2?", "4", None),
        ("Find x.", r"\frac{1}{2}", None),
        ("Let ABC be a triangle. Prove that AB < AC + CB.", "1", "proof"),
        ("Show that there are none.", "0", "proof"),
        ("Find the number that we prove to be least.", "3", None),
        ("What holds?", "Proof in the solution", "proof"),
        ("Which is it? (A) 1 (B) 2 (C) 3", "B", "multiple choice"),
        ("Which is it?\nA. 1\nB. 2", r"\text{(B)}", "multiple choice"),
        ("Which vertex is nearest?", "A", None),
        ("Find a and b.", "(a) 1 (b) 2", "several parts"),
        ("Find the point.", "(1, 2)", None),
        ("Who won?", "Alice and Bob", "answer cannot be compared"),
        ("How many?", "2^{2023}", "answer cannot be compared"),
    ],
)
def test_what_cannot_be_graded(problem: str, answer: str, reason: str | None) -> None:
    assert ungradable(problem, answer) == reason


@pytest.mark.slow  # graders in processes of their own, with SymPy
def test_every_step_is_counted(tmp_path: Path) -> None:
    rows = [
        {"problem": f"How many {thing} does a {animal} have?", "answer": str(n), "solution": ""}
        for n, (thing, animal) in enumerate(
            (t, a) for t in ("eyes", "feet", "brothers", "enemies") for a in ("mouse", "lion", "whale", "wasp")
        )
    ]
    rows += [
        {"problem": "How many eyes does a mouse have?", "answer": "2", "solution": ""},
        {"problem": "How many eyes does a mouse have??", "answer": "2", "solution": ""},
        {"problem": "Prove that two is even.", "answer": "2", "solution": ""},
        {"problem": "Which? (A) 1 (B) 2", "answer": "A", "solution": ""},
        {"problem": "Where do they meet?", "answer": "in London", "solution": ""},
        {"problem": "What is left of it?", "answer": r"\frac{1}{", "solution": ""},
        {"problem": "Nothing is known of it.", "answer": "", "solution": "no box"},
        {"problem": "Half of a dozen eggs?", "answer": "", "solution": r"It is \boxed{6}."},
    ]
    write_data_set(tmp_path / "mirror", DEEPSCALER, {"default": {"train": pa.Table.from_pylist(rows)}})
    config = {
        "sources": [{"data_set": DEEPSCALER}],
        "mirror": str(tmp_path / "mirror"),
        "heldout": 0.3,
        "max_similarity": 0.85,
    }
    ctx = LocalContext(tmp_path / "run", ProblemsConfig(**config), node="problems")
    run(ctx)
    assert ctx.stats["removed"] == {
        "no answer": 1, "duplicate": 1, "proof": 1, "multiple choice": 1, "answer cannot be compared": 1,
        "verifier refuses the answer": 1, "redundant": 1,
    }  # fmt: skip
    assert ctx.stats["funnel"] == {"read": 24, "with an answer, once": 22, "gradable": 18, "not redundant": 17}
    assert ctx.stats["train"] + ctx.stats["heldout"] == 17
    kept = [r for port in ("train", "heldout") for r in read_problems(ctx.output(port))]
    assert "How many eyes does a mouse have??" not in [r["problem"] for r in kept]
    assert {r["problem"]: r["answer"] for r in kept}["Half of a dozen eggs?"] == "6"


def slow_redundant(vectors: np.ndarray, most: float) -> list[bool]:
    kept: list[np.ndarray] = []
    out = []
    for vector in vectors:
        out.append(any(float(vector @ other) > most for other in kept))
        if not out[-1]:
            kept.append(vector)
    return out


@max_examples(25)
@given(
    st.integers(0, 40), st.integers(0, 2**31), st.sampled_from([0.5, 0.9, 1.0]), st.integers(1, 7), st.integers(1, 9)
)
def test_blocks_give_what_one_by_one_gives(count: int, seed: int, most: float, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 4))
    vectors = (centres[rng.integers(0, 6, count)] + 0.2 * rng.normal(size=(count, 4))).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "ROWS", rows)
        patch.setattr(embedding, "COLUMNS", columns)
        cosines = vectors @ vectors.T
        if count and np.abs(cosines - most).min() < 1e-5:  # rounding may decide differently there
            return
        assert redundant(vectors, most).tolist() == slow_redundant(vectors, most)


def test_ngrams_see_spelling(tmp_path: Path) -> None:
    texts = ["How many apples are left in the basket?", "How many  APPLES are left in the basket", "Solve x + 3 = 8."]
    vectors = ngrams(texts)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.9 > 0.3 > cosines[0, 2]
    assert np.array_equal(vectors, ngrams(texts))
    assert np.allclose(np.linalg.norm(ngrams(["", "x"]), axis=1), [0, 1])


@pytest.mark.slow  # PyTorch and transformers
def test_a_models_vectors_are_the_mean_of_its_tokens(tmp_path: Path) -> None:
    """A small BERT in a folder, as all-MiniLM-L6-v2's: batching and padding change nothing."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {w: n for n, w in enumerate(["[PAD]", "[UNK]", "how", "many", "apples", "are", "left", "solve"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    encoder = BertModel(config).eval()
    encoder.save_pretrained(tmp_path)
    texts = ["how many apples are left", "solve", "how many", "left " * 400]
    vectors = embedder(str(tmp_path), "problems.embedding")(texts)
    assert vectors.shape == (4, 16)
    with torch.inference_mode():
        for text, vector in zip(texts[:3], vectors, strict=False):
            mean = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            assert np.allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package", "there is no such package; pip install no-such-package"),
        ("/no/such/folder", "no model there"),
    ],
)
def test_models_that_are_not_there_are_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"problems.embedding = '{name}': .*{message}"):
        embedder(name, "problems.embedding")
