"""Keys and digests: golden values, and the properties that make a ledger trustworthy."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stages.probe_train.spec import TrainConfig

from stages.core import keys
from stages.core.artifacts import FileEntry
from stages.core.files import ROOT
from stages.core.keys import artifact_digest, canonical_json, sha256, source_digest, stage_key

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


# --- golden values: computed with sha256sum from the text, not with this program
# ---------------------------------------


def test_the_key_of_a_fixed_attempt_never_changes() -> None:
    """A change here makes every result of every user unknown. That takes a new SCHEMA, and a reason."""
    found = stage_key(
        "tokenize",
        3,
        {"sequence_length": 2048, "heldout": 0.02},
        {"tokenizer": ["cc"], "documents": ["aa", "bb"], "extra": []},
    )
    text = (
        b'{"config":{"heldout":0.02,"sequence_length":2048},"inputs":{"documents":["aa","bb"],"tokenizer":["cc"]},'
        b'"revision":3,"schema":1,"stage":"tokenize"}'
    )
    assert sha256(text) == found == "96f083c13f304516b3819e2ea90ddaae97ea5936299365a36c1934d7e55679b6"


def test_the_key_of_an_attempt_without_inputs_never_changes() -> None:
    assert stage_key("collect", 1, {}, {}) == "70d761650c23c9b717b5c00b7bea2bee0697ed358be7f52bd790ea30205f1e69"


def test_the_digest_of_a_fixed_artifact_never_changes() -> None:
    files = [
        FileEntry(path="é.json", size=1, sha256="a" * 64, object="anywhere/1"),
        FileEntry(path="a/b.json", size=2, sha256="b" * 64, object="anywhere/2"),
    ]
    assert (
        artifact_digest("Tokenizer", {"vocab_size": 100, "tokenizer_digest": "d1"}, files)
        == "d27ec9d18191ac895ddb73e0b835c7499c22855bd0fe9245ac7871d22232b7f2"
    )


def test_a_key_does_not_depend_on_the_hash_seed_or_the_process() -> None:
    program = (
        "from stages.core.keys import stage_key;"
        "print(stage_key('s', 1, {'b': {'y': 1, 'x': None}, 'a': [1.5, 'é']}, {'p': ['1'], 'o': ['2']}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=keys.ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {
        (stage_key("s", 1, {"a": [1.5, "é"], "b": {"x": None, "y": 1}}, {"o": ["2"], "p": ["1"]}) + "\n").encode()
    }


# --- canonical JSON ---------------------------------------------------------------------------------------------------


@given(JSON, st.randoms(use_true_random=False))
def test_the_order_of_keys_makes_no_difference(value: object, rng: random.Random) -> None:
    def shuffled(inner: object) -> object:
        if isinstance(inner, dict):
            items = [(key, shuffled(v)) for key, v in inner.items()]
            rng.shuffle(items)
            return dict(items)
        return [shuffled(v) for v in inner] if isinstance(inner, list) else inner

    assert canonical_json(shuffled(value)) == canonical_json(value)


@given(JSON)
def test_canonical_json_is_json_of_the_same_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(JSON, JSON)
def test_different_values_give_different_bytes(one: object, other: object) -> None:
    assert (canonical_json(one) == canonical_json(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": [-float("inf")]}])
def test_what_is_not_a_number_has_no_key(value: object) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(value)


# --- keys -------------------------------------------------------------------------------------------------------------


CONFIGS = st.builds(
    TrainConfig,
    learning_rate=st.floats(1e-6, 10),
    sequence_length=st.none() | st.integers(2, 99),
    steps=st.integers(1, 99),
    workers=st.integers(1, 9),
    save_every=st.integers(1, 9),
    step_seconds=st.floats(0, 1),
    die_after=st.none() | st.integers(1, 9),
)
OTHER_VALUES = {"learning_rate": 11.0, "sequence_length": 100, "steps": 100, "shape": {"layers": 3}}


def key_of(config: TrainConfig) -> str:
    return stage_key("probe_train", 1, config.identity(), {"shards": ["1"]})


@given(CONFIGS, st.sampled_from(sorted(OTHER_VALUES)))
def test_a_key_differs_on_each_identity_field(config: TrainConfig, field: str) -> None:
    changed = TrainConfig.model_validate(config.model_dump() | {field: OTHER_VALUES[field]})
    assert key_of(changed) != key_of(config)


@given(CONFIGS, CONFIGS)
def test_a_key_depends_on_the_identity_fields_only(one: TrainConfig, other: TrainConfig) -> None:
    operational = {"workers", "save_every", "step_seconds", "die_after"}
    mixed = TrainConfig.model_validate(one.model_dump() | other.model_dump(include=operational))
    assert key_of(mixed) == key_of(one)
    assert set(one.identity()) == set(TrainConfig.model_fields) - operational
    assert (key_of(one) == key_of(other)) == (one.identity() == other.identity())


def test_a_key_differs_on_stage_revision_ports_and_order_of_inputs() -> None:
    found = [
        stage_key("a", 1, {}, {"x": ["1", "2"]}),
        stage_key("b", 1, {}, {"x": ["1", "2"]}),
        stage_key("a", 2, {}, {"x": ["1", "2"]}),
        stage_key("a", 1, {}, {"y": ["1", "2"]}),
        stage_key("a", 1, {}, {"x": ["2", "1"]}),
        stage_key("a", 1, {}, {"x": ["1"], "y": ["2"]}),
        stage_key("a", 1, {}, {"x": ["12"]}),
    ]
    assert len(set(found)) == len(found)


# --- artifact digests -------------------------------------------------------------------------------------------------


FILES = st.lists(
    st.builds(
        FileEntry,
        path=st.text("abc/.é", min_size=1),
        size=st.integers(0, 2**40),
        sha256=st.sampled_from(["a" * 64, "b" * 64]),
        object=st.text("xyz"),
    ),
    unique_by=lambda f: f.path,
    max_size=5,
)


@given(FILES, st.randoms(use_true_random=False))
def test_a_digest_depends_on_content_alone_not_on_order_or_place(files: list[FileEntry], rng: random.Random) -> None:
    moved = [f.model_copy(update={"object": f.object + "elsewhere"}) for f in files]
    rng.shuffle(moved)
    facets = {"vocab_size": 7, "dtype": "uint16"}
    assert artifact_digest("Model", facets, moved) == artifact_digest("Model", dict(reversed(facets.items())), files)


@given(FILES, FILES)
def test_different_contents_have_different_digests(one: list[FileEntry], other: list[FileEntry]) -> None:
    def content(files: list[FileEntry]) -> set[tuple[str, int, str]]:
        return {(f.path, f.size, f.sha256) for f in files}

    same = artifact_digest("Model", {}, one) == artifact_digest("Model", {}, other)
    assert same == (content(one) == content(other))


def test_type_and_facets_are_part_of_a_digest() -> None:
    found = {
        artifact_digest("Model", {"dtype": "f32"}, []),
        artifact_digest("Model", {"dtype": "bf16"}, []),
        artifact_digest("Tokenizer", {"dtype": "f32"}, []),
        artifact_digest("Model", {"vocab_size": 1}, []),
        artifact_digest("Model", {"vocab_size": "1"}, []),
    }
    assert len(found) == 5


# --- source digests ---------------------------------------------------------------------------------------------------


TREE = {
    "stages/__init__.py": "",
    "stages/core/__init__.py": "",
    "stages/core/stage.py": "X = 1\n",
    "stages/alpha/__init__.py": "",
    "stages/alpha/spec.py": "from stages.core.stage import X\n",
    "stages/alpha/run.py": "import os\n\ndef run(ctx):\n    from stages import shared\n",
    "stages/alpha/inner/deep.py": (
        "import stages.lib.modeling.decoder\nsubprocess.run([python, '-m', 'stages.started'])\n"
    ),
    "stages/started.py": "JUDGES = {'rule': \"stages.judge:is_equal\"}\n",
    "stages/judge.py": "",
    "stages/shared.py": "from stages.deeper import y\n",
    "stages/deeper.py": "import stages.shared\ny = 1\n",
    "stages/lib/__init__.py": "",
    "stages/lib/modeling/__init__.py": "",
    "stages/lib/modeling/decoder.py": "z = 1\n",
    "stages/unrelated.py": "q = 1\n",
    "stages/beta/run.py": "",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small copy of the layout of the real sources."""
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    source_digest.cache_clear()
    yield tmp_path
    source_digest.cache_clear()


def digest_after(path: Path, text: str | None = None) -> str:
    path.write_text(path.read_text() + "# changed\n" if text is None else text)
    source_digest.cache_clear()
    return source_digest("alpha")


@pytest.mark.parametrize(
    "name",
    [
        "stages/alpha/run.py",
        "stages/alpha/spec.py",
        "stages/alpha/inner/deep.py",
        "stages/shared.py",
        "stages/deeper.py",
        "stages/lib/modeling/decoder.py",
        "stages/lib/modeling/__init__.py",
        "stages/lib/__init__.py",
        "stages/started.py",
        "stages/judge.py",
    ],
)
def test_a_change_of_what_a_stage_imports_changes_its_digest(tree: Path, name: str) -> None:
    before = source_digest("alpha")
    assert digest_after(tree / name) != before


@pytest.mark.parametrize("name", ["stages/core/stage.py", "stages/unrelated.py", "stages/beta/run.py"])
def test_a_change_elsewhere_does_not(tree: Path, name: str) -> None:
    before = source_digest("alpha")
    assert digest_after(tree / name) == before


def test_a_new_file_of_the_stage_counts(tree: Path) -> None:
    before = source_digest("alpha")
    assert digest_after(tree / "stages/alpha/extra.py", "w = 1\n") != before


def test_a_file_that_moves_counts(tree: Path) -> None:
    before = source_digest("alpha")
    (tree / "stages/alpha/inner/deep.py").rename(tree / "stages/alpha/inner/deeper.py")
    source_digest.cache_clear()
    assert source_digest("alpha") != before


def test_the_digest_is_that_of_the_files_not_of_the_folder_they_lie_in(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source_digest("alpha")
    moved = tree.with_name("moved")
    tree.rename(moved)
    monkeypatch.setattr(keys, "ROOT", moved)
    source_digest.cache_clear()
    assert source_digest("alpha") == before
    assert source_digest("beta") != before


def test_our_modules_are_found_however_they_are_imported() -> None:
    source = b"""
import stages.a
if x: from stages.b import c as d, e; import stages.f as g, os, stages.h  # and stages.none
def inner():
    from stages.i import (  # a word, in (brackets)
        j,  # or two
        k as m,
    )
    from stages.n import o, \\
        p
async def other():
    import os, \\
        stages.q
    from other import stages_too
    from os import path
    raise error from stages
START = ["stages.r", "stages.s:main", "no stages.t"]
"""
    expected = ["a", "b", "b.c", "b.e", "f", "h", "i", "i.j", "i.k", "n", "n.o", "n.p", "q", "r", "s"]
    assert keys.imported_modules(source) == {f"stages.{name}" for name in expected}


def by_syntax(source: bytes) -> set[str]:
    names = {name.decode() for _, name in keys._NAMED.findall(source)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.partition(".")[0] == "stages"}


def test_no_import_of_our_own_sources_is_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As their syntax has them; and the files of every stage are those of its syntax."""
    sources = {path.read_bytes() for path in (ROOT / "stages").rglob("*.py")}
    exact = {source: by_syntax(source) for source in sources}
    assert [names - keys.imported_modules(source) for source, names in exact.items()] == [set()] * len(exact)
    stages = [path.parent.name for path in (ROOT / "stages").glob("*/spec.py")]
    files = {stage: keys.source_files(stage) for stage in stages}
    monkeypatch.setattr(keys, "imported_modules", exact.__getitem__)
    monkeypatch.setattr(keys, "_imported", keys._imported.__wrapped__)
    assert files == {stage: keys.source_files(stage) for stage in stages}
    assert len(stages) > 20
