"""The `quality` stage: the best tenth by score, the same one every time."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from stages.core.artifacts import Documents
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.lib.data.group_sampling import row_groups
from stages.lib.data.workers import Pool
from stages.lib.formats import documents as formats
from stages.lib.formats.documents import read_documents, write_documents
from stages.quality import run as quality
from stages.quality import selection, training
from stages.quality.fasttext_scorer import Scorer, line
from stages.quality.run import run
from stages.quality.spec import QualityConfig
from tests.support.examples import max_examples

SMALL: dict[str, Any] = {"dim": 8, "buckets": 2000, "epochs": 10, "learning_rate": 0.5}
GOOD = ["because", "therefore", "explain", "example", "theorem", "question", "answer", "reason", "derive", "method"]
JUNK = ["click", "buy", "now", "cheap", "login", "cart", "offer", "free", "winner", "casino"]


def texts(rng: random.Random, words: list[str], count: int) -> list[str]:
    common = ["the", "a", "of", "and", "to", "in", "is", "it"]
    return [" ".join(rng.choices(words + common, k=rng.randint(20, 60))) for _ in range(count)]


def corpus(seed: int = 0, good: int = 40, junk: int = 360) -> tuple[list[str], set[str], list[str]]:
    """A web of `good` useful documents among junk, which ones those are, and a reference."""
    rng = random.Random(seed)
    useful = texts(rng, GOOD, good)
    web = useful + texts(rng, JUNK, junk)
    rng.shuffle(web)
    return web, set(useful), texts(rng, GOOD, 150)


def write(folder: Path, content: list[str]) -> Path:
    folder.mkdir(parents=True)
    write_documents(folder, ({"id": str(n), "text": t, "source": "web"} for n, t in enumerate(content)))
    return folder


def filtered(root: Path, web: list[str], reference: list[str], **config: Any) -> LocalContext[QualityConfig]:
    inputs = {
        "documents": [local_artifact(Documents, write(root / "web", web))],
        "positives": [local_artifact(Documents, write(root / "reference", reference))],
    }
    ctx = LocalContext(root, QualityConfig(**{**SMALL, **config}), inputs)
    run(ctx)
    return ctx


def kept(ctx: LocalContext[QualityConfig]) -> list[str]:
    return [d["text"] for d in read_documents(ctx.output("kept"))]


def test_the_best_tenth_is_what_looks_like_the_reference(tmp_path: Path) -> None:
    web, useful, reference = corpus()
    ctx = filtered(tmp_path, web, reference)
    chosen = kept(ctx)
    assert len(chosen) == 40 == ctx.stats["documents"]
    assert len(set(chosen) & useful) >= 38
    assert [t for t in web if t in set(chosen)] == chosen, "input order"
    assert ctx.stats["test_accuracy"] >= 0.85  # a tenth of the negatives is useful too
    assert sum(row["documents"] for row in ctx.stats["histogram"]) == len(web) == ctx.stats["scored"]
    meta = dict(ctx.meta["kept"])
    assert [sum(meta.pop(name).values()) for name in ("per_source", "per_license")] == [40, 40]
    assert meta == {"documents": 40, "text_bytes": sum(len(t.encode()) for t in chosen)}


def test_training_is_the_same_whatever_the_memory_held_before(tmp_path: Path) -> None:
    """fastText leaves nine tenths of its matrix uninitialized: on a used heap, results differed or were NaN."""
    web, _, reference = corpus()
    runs = []
    for n in range(4):
        litter = [np.random.default_rng(n).random(size) for size in (10, 100, 1000, 4000, 8000, 9000, 100_000) * 4]
        del litter
        ctx = filtered(tmp_path / str(n), web, reference)
        runs.append(((ctx.output("kept") / "part-00000.parquet").read_bytes(), ctx.stats))
    assert all(other == runs[0] for other in runs[1:])


def test_a_c_library_without_mallopt_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeroed = training.zeroed_memory

    @contextmanager
    def unknown() -> Iterator[bool]:
        with zeroed():
            yield False

    with zeroed() as before, monkeypatch.context() as patch:
        patch.setattr(training.ctypes, "CDLL", lambda name: object())
        with zeroed() as without:
            assert (before, without) == (True, False)
    monkeypatch.setattr(training, "zeroed_memory", unknown)
    web, _, reference = corpus(good=5, junk=40)
    assert filtered(tmp_path, web, reference).logs == [
        "warning: this C library has no mallopt: the classifier may differ from one training to the next"
    ]


def trained(ctx: LocalContext[QualityConfig]) -> Any:
    """The classifier of a run's inputs."""
    folder = ctx.root / "model"
    folder.mkdir()
    with Pool(folder / "work") as pool:
        return training.fitted(folder, **quality.sample(ctx, pool))[0]


def selected(folder: Path, values: np.ndarray, cuts: list[int], keep: int) -> np.ndarray:
    """Which of some scores stay, when they lie in shards."""
    parts = np.split(values, cuts)
    for n, part in enumerate(parts):
        (folder / f"{n}").mkdir(parents=True)
        selection.write_scores(folder / f"{n}", part)
    entries = [local_artifact(Documents, folder / f"{n}").entries() for n in range(len(parts))]
    scores, bins = ([next(e for e in of_one if e.path == name) for of_one in entries] for name in ("scores", "bins"))
    with Pool(folder / "work") as pool:
        edge = selection.cut(pool, scores, bins, keep)
    found = []
    for part, ties in zip(parts, edge.ties, strict=True):
        equal = selection.ordered(part) == edge.key
        assert ties <= equal.sum()
        found.append((selection.ordered(part) > edge.key) | (equal & (np.cumsum(equal) <= ties)))
    return np.concatenate(found)


@pytest.mark.parametrize(
    ("documents", "fraction", "wanted"), [(10, 0.1, 1), (19, 0.1, 1), (100, 0.29, 29), (7, 1.0, 7)]
)
def test_the_share_is_exact_and_ties_go_to_the_earlier(
    tmp_path: Path, documents: int, fraction: float, wanted: int
) -> None:
    """Every document is the same: the first of them stay."""
    _, _, reference = corpus(good=5, junk=40)
    ctx = filtered(tmp_path, ["the same text"] * documents, reference, keep_fraction=fraction)
    assert [d["id"] for d in read_documents(ctx.output("kept"))] == [str(n) for n in range(wanted)]
    assert_array_equal(
        np.flatnonzero(selected(tmp_path / "s", np.full(documents, 0.5), [3, 5], wanted)), np.arange(wanted)
    )


@max_examples(60)
@given(
    st.lists(st.floats(-1e-5, 1.00001) | st.sampled_from([0.0, -0.0, 0.25, 1e-5]), min_size=10, max_size=60),
    st.integers(1, 3),
    st.data(),
)
def test_the_best_are_those_of_a_sort(scores: list[float], files: int, data: st.DataObject) -> None:
    """The selection over shards keeps exactly what a stable sort of all scores would."""
    values = np.array(scores)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(scores)), max_size=3)))
    keep = data.draw(st.integers(1, len(scores)))
    wanted = np.zeros(len(values), bool)
    wanted[np.argsort(-values, kind="stable")[:keep]] = True
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "FILES", files)
        assert_array_equal(selected(Path(folder), values, cuts, keep), wanted)


def test_of_a_large_corpus_a_few_row_groups_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 20 of 300 row groups are read, from all over the corpus, and the classifier is as good."""
    web, useful, reference = corpus(good=300, junk=2700)
    monkeypatch.setattr(formats, "ROW_GROUP_BYTES", 5000)
    inputs = {
        "documents": [local_artifact(Documents, write(tmp_path / "web", web))],
        "positives": [local_artifact(Documents, write(tmp_path / "reference", reference))],
    }
    read: list[int] = []
    plain = training.read_group
    monkeypatch.setattr(
        training, "read_group", lambda group, columns: read.append(group.number) or plain(group, columns)
    )
    monkeypatch.setattr(quality, "OVERSAMPLE", 2)
    ctx = LocalContext(tmp_path, QualityConfig(**SMALL, train_documents=100), inputs)
    run(ctx)
    groups = len(row_groups(inputs["documents"][0].entries()))
    assert groups > 200
    assert 15 <= len([n for n in read if n >= 20]) < groups / 6
    assert max(read) > groups * 0.9
    assert ctx.stats["train_documents"] + ctx.stats["test_documents"] == 200
    assert len(set(kept(ctx)) & useful) >= 280


def test_a_threshold_replaces_the_share(tmp_path: Path) -> None:
    web, useful, reference = corpus()
    ctx = filtered(tmp_path, web, reference, threshold=0.3)
    assert ctx.stats["threshold"] > 0.3
    assert len(set(kept(ctx)) & useful) >= 38


def test_labels_in_a_text_are_words(tmp_path: Path) -> None:
    """A page about fastText must not teach the classifier a third label."""
    assert line(" a\nb\r\nc\u2028d ") == "a b c d"
    assert line("see __label__spam and __label__hq") == "see labelspam and labelhq"
    web, _, reference = corpus()
    ctx = filtered(tmp_path, [t + " __label__other __label__hq" for t in web], reference)
    model = trained(ctx)
    assert sorted(model.labels) == ["__label__cc", "__label__hq"]
    assert not any("label" in word for word in model.words if word not in ("labelother", "labelhq", "</s>"))


ODD = [
    "</s> ",
    "\u3000",
    "\u2028",
    "\u0085",
    "\x00",
    "\x1c",
    "\x1f",
    "\x0b",
    "__label__hq ",
    "naïve ",
    "日本 ",
    "🙂",
    "because ",
    "buy ",
    "\n",
    " ",
]


@pytest.mark.parametrize("ngrams", [1, 2, 4])
def test_the_collapsed_scorer_is_fasttext(tmp_path: Path, ngrams: int) -> None:
    """Equal within 1e-6 on texts of known and unknown words, odd separators, and words that mean something to
    fastText.
    """
    web, _, reference = corpus()
    rng = random.Random(1)
    web = [t if n % 3 else t + " " + "".join(rng.choices(ODD, k=8)) for n, t in enumerate(web)]
    model = trained(filtered(tmp_path, web, reference, word_ngrams=ngrams, buckets=500))
    scorer = Scorer.of(model)
    assert scorer is not None
    tests = [
        *web[:100],
        *reference[:50],
        "",
        " ",
        "unknown words alone",
        *("".join(rng.choices([*ODD, *GOOD, *JUNK], k=12)) for _ in range(400)),
    ]
    data = [t.encode() for t in tests]
    found = scorer.score(np.frombuffer(b"".join(data), np.uint8), np.cumsum([0, *map(len, data)]))
    wanted = training.scores(model, tests)
    even = np.abs(wanted - 0.5) < 2e-5  # rounding decides which label fastText adds its 1e-5 to
    assert np.abs(found - wanted)[~even].max() < 1e-6
    assert np.abs(found - wanted).max() < 2.1e-5
    assert even.mean() < 0.5
    assert found.min() < 0.2 < 0.8 < found.max()


def test_a_classifier_that_does_not_fit_is_left_to_fasttext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web, _, reference = corpus()
    plain = filtered(tmp_path / "collapsed", web, reference)
    model = trained(plain)
    arguments = type("Arguments", (), {"loss": "loss_name.hs", "maxn": 0, "wordNgrams": 1})
    assert Scorer.of(type("Model", (), {"f": type("F", (), {"getArgs": staticmethod(lambda: arguments)})})) is None
    monkeypatch.setattr(Scorer, "of", classmethod(lambda cls, model: None))
    slow = filtered(tmp_path / "plain", web, reference)
    assert kept(slow) == kept(plain)
    assert slow.logs == [
        "warning: this classifier cannot be collapsed: fastText scores the documents itself, which is slower"
    ]
    model.save_model(str(tmp_path / "model.bin"))
    adopted = filtered(tmp_path / "adopted", web, reference, model=str(tmp_path / "model.bin"))
    assert kept(adopted) == kept(plain)
    assert adopted.stats["classifier"] == "model.bin"


def test_a_model_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    web, _, reference = corpus(good=5, junk=40)
    with pytest.raises(ConfigError, match=r"test\.model = .*none\.bin: no such file"):
        filtered(tmp_path / "none", web, reference, model=str(tmp_path / "none.bin"))
    (tmp_path / "bad.bin").write_bytes(b"no model at all")
    with pytest.raises(ConfigError, match=r"bad\.bin: no fastText model"):
        filtered(tmp_path / "bad", web, reference, model=str(tmp_path / "bad.bin"))


@pytest.mark.slow  # processes of their own
def test_two_workers_keep_the_same(tmp_path: Path) -> None:
    web, _, reference = corpus()
    one, two = (filtered(tmp_path / str(n), web, reference, workers=n) for n in (1, 2))
    assert (one.output("kept") / "part-00000.parquet").read_bytes() == (
        two.output("kept") / "part-00000.parquet"
    ).read_bytes()
    assert one.stats == two.stats


def test_scores_are_the_probability_of_the_positive_label(tmp_path: Path) -> None:
    web, _, reference = corpus()
    model = trained(filtered(tmp_path, web, reference))
    good, junk, empty = training.scores(model, [" ".join(GOOD), " ".join(JUNK), ""])
    assert good > 0.8 > 0.5 > 0.2 > junk
    assert 0 <= empty <= 1.0001


def test_what_cannot_be_trained_or_kept_is_named(tmp_path: Path) -> None:
    web, _, reference = corpus(good=5, junk=40)
    for name, documents, positives, says in (
        ("no-web", [], reference, "no documents from test: nothing to score or to learn from"),
        ("no-reference", web, [], "no documents from test: nothing to score or to learn from"),
        ("few", web, reference[:1], "1 documents of each label are too few to train a classifier on"),
    ):
        with pytest.raises(InputError, match=says):
            filtered(tmp_path / name, documents, positives)
    with pytest.raises(InputError, match=r"keep_fraction 0\.001 keeps none of 45 documents: lower the bar"):
        filtered(tmp_path / "share", web, reference, keep_fraction=0.001)
    with pytest.raises(InputError, match=r"threshold 1\.0 keeps none of 45 documents"):
        filtered(tmp_path / "bar", web, reference, threshold=1.0)


def test_a_classifier_that_diverges_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Encountered NaN.")

    monkeypatch.setattr(training.fasttext, "train_supervised", nan)
    web, _, reference = corpus(good=5, junk=40)
    with pytest.raises(ConfigError, match=r"test\.learning_rate = 0\.5: the classifier diverged; lower it"):
        filtered(tmp_path, web, reference)
