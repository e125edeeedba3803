"""The graph: a broken declaration is refused at once, and selections follow the edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stages.probe_source.spec import Source
from stages.probe_tokenizer.spec import Vocabulary

from stages.core.errors import ConfigError
from stages.core.graph import Pipeline
from tests.support.probe_pipeline import small_pipeline

PIPE = small_pipeline()
NAMES = list(PIPE.nodes)


def names(selection: str | list[str]) -> list[str]:
    return [node.name for node in PIPE.select(selection)]


# --- declaration ------------------------------------------------------------------------------------------------------


def test_nodes_are_found_by_name_and_kept_in_order() -> None:
    assert (
        [node.name for node in PIPE] == NAMES == ["source_a", "source_b", "vocabulary", "shards", "train_1", "train_2"]
    )
    assert len(PIPE) == 6
    assert "shards" in PIPE
    assert "shard" not in PIPE
    assert PIPE["shards"].stage == "probe_shards"


def test_two_nodes_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="'a' is used twice"):
        Pipeline([Source(name="a"), Source(name="a")])


@pytest.mark.parametrize("name", ["full", "Upper", "1st", "with-dash", "", "a+b", "ä", "a\n"])
def test_a_name_must_be_usable_everywhere(name: str) -> None:
    with pytest.raises(ValueError, match="node name"):
        Pipeline([Source(name=name)])


def test_a_parent_must_be_declared_before() -> None:
    source = Source(name="source")
    vocabulary = Vocabulary(name="vocabulary", documents=[source.documents])
    with pytest.raises(ValueError, match="node vocabulary reads from source, which is not declared before it"):
        Pipeline([vocabulary])
    with pytest.raises(ValueError, match="not declared before it"):
        Pipeline([vocabulary, source])


def test_a_cycle_cannot_be_declared() -> None:
    """Outputs exist only once their node does, so a cycle needs force; the order check refuses it even then."""
    source = Source(name="source")
    first = Vocabulary(name="first", documents=[source.documents])
    second = Vocabulary(name="second", documents=[source.documents])
    first.wires["documents"] = (second.tokenizer,)
    second.wires["documents"] = (first.tokenizer,)
    for order in ([source, first, second], [source, second, first]):
        with pytest.raises(ValueError, match="not declared before it"):
            Pipeline(order)


# --- relatives --------------------------------------------------------------------------------------------------------


def test_ancestors_and_descendants() -> None:
    assert PIPE.ancestors("shards") == {"source_a", "source_b", "vocabulary"}
    assert PIPE.ancestors("source_a") == set()
    assert PIPE.descendants("shards") == {"train_1", "train_2"}
    assert PIPE.descendants("train_2") == set()


@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_being_an_ancestor_is_the_converse_of_being_a_descendant(one: str, other: str) -> None:
    assert (one in PIPE.ancestors(other)) == (other in PIPE.descendants(one))


# --- selections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("full", NAMES),
        ("shards", ["shards"]),
        ("shards+", ["shards", "train_1", "train_2"]),
        ("+shards", ["source_a", "source_b", "vocabulary", "shards"]),
        ("+train_1+", NAMES),
        ("probe_source", ["source_a", "source_b"]),
        ("probe_train+", ["train_1", "train_2"]),
        ("train_2, source_a", ["source_a", "train_2"]),
        ("  source_b\n source_a,,", ["source_a", "source_b"]),
        (["train_1", "source_a"], ["source_a", "train_1"]),
    ],
)
def test_the_grammar(selection: str | list[str], expected: list[str]) -> None:
    assert names(selection) == expected


@given(st.lists(st.sampled_from(NAMES), min_size=1))
def test_x_plus_is_closed_under_descendants(chosen: list[str]) -> None:
    found = set(names([f"{name}+" for name in chosen]))
    assert set(chosen) <= found
    assert all(PIPE.descendants(name) <= found for name in found)
    assert all(name in chosen or PIPE.ancestors(name) & set(chosen) for name in found), "nothing more than needed"


@given(st.lists(st.sampled_from(NAMES), min_size=1))
def test_plus_x_is_closed_under_ancestors(chosen: list[str]) -> None:
    found = set(names([f"+{name}" for name in chosen]))
    assert set(chosen) <= found
    assert all(PIPE.ancestors(name) <= found for name in found)
    assert all(name in chosen or PIPE.descendants(name) & set(chosen) for name in found), "nothing more than needed"


@given(st.lists(st.sampled_from([*NAMES, "probe_train", "shards+", "+shards", "full"]), min_size=1))
def test_a_selection_is_the_union_of_its_terms_in_pipeline_order(terms: list[str]) -> None:
    found = names(", ".join(terms))
    assert set(found) == set().union(*(names(term) for term in terms))
    assert found == [name for name in NAMES if name in found]


@pytest.mark.parametrize("selection", ["", " , ", []])
def test_an_empty_selection_is_refused(selection: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="select is empty"):
        names(selection)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("shard", "no node or stage 'shard'; did you mean 'shards'"),
        ("+vocabulery", "did you mean 'vocabulary'"),
        ("fulll", "did you mean 'full'"),
        ("zzz", "nodes: source_a, source_b"),
        ("Shards", "did you mean 'shards'"),
        ("shards++", "no node or stage 'shards\\+\\+'"),
    ],
)
def test_a_typing_mistake_gets_the_nearest_name(selection: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        names(selection)
