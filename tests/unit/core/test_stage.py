"""Stages as classes: ports from annotations, wiring checked at once, configurations, facets, exit classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
from pydantic import Field, ValidationError
from stages.probe_shards.spec import Shards
from stages.probe_source.spec import Source, SourceConfig
from stages.probe_tokenizer.spec import Vocabulary
from stages.probe_train.spec import Train, TrainConfig

from stages.core.artifacts import Documents, Model, Tokenizer, TokenShards
from stages.core.config import Operational, StageConfig
from stages.core.errors import ConfigError, ExitClass, InfraError, InputError, Preempted, StageError
from stages.core.messages import StageRequest, StoreAddress
from stages.core.resources import Resources, Work
from stages.core.stage import Facets, Input, Output, Port, Stage, output

# --- ports ------------------------------------------------------------------------------------------------------------


def test_ports_are_read_from_the_annotations() -> None:
    assert Train.ports == {
        "shards": Port("shards", TokenShards, "input"),
        "tokenizer": Port("tokenizer", Tokenizer, "input"),
        "parent": Port("parent", Model, "input", optional=True),
        "model": Port("model", Model, "output"),
    }
    assert Vocabulary.ports["documents"] == Port("documents", Documents, "input", many=True)


def test_a_stage_takes_its_name_from_its_package_and_the_rest_from_its_class_line() -> None:
    assert (Train.stage, Train.env, Train.revision, Train.checkpoints) == ("probe_train", "train", 1, True)
    assert (Source.stage, Source.checkpoints) == ("probe_source", False)
    assert Train.config_type is TrainConfig


def test_a_stage_says_where_a_broken_attempt_goes_on_from() -> None:
    class Saving(StageConfig):
        checkpoint_every: int = 500

    assert Source.resumes(SourceConfig()) == "its beginning"
    assert Train.resumes(Saving(checkpoint_every=20)) == "its newest checkpoint, one every 20 steps"


def test_an_optional_list_is_read_too() -> None:
    class Empty(StageConfig):
        pass

    class Merge(Stage[Empty], env="data", revision=1):
        documents: Sequence[Input[Documents]] | None = None
        merged: Output[Documents] = output()

    assert Merge.ports["documents"] == Port("documents", Documents, "input", many=True, optional=True)
    assert Merge(name="merge").wires == {"documents": ()}


# --- wiring -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source() -> Source:
    return Source(name="source")


@pytest.fixture
def vocabulary(source: Source) -> Vocabulary:
    return Vocabulary(name="vocabulary", documents=[source.documents])


def wire(stage: type[Stage[Any]], **wires: Any) -> Stage[Any]:
    """Wire without the type checker, which would find all of these mistakes already."""
    return stage(name="node", **wires)


def test_parents_are_named_once_in_port_order(source: Source, vocabulary: Vocabulary) -> None:
    other = Source(name="other")
    shards = Shards(
        name="shards", documents=[other.documents, source.documents, other.documents], tokenizer=vocabulary.tokenizer
    )
    assert shards.parents == ("other", "source", "vocabulary")
    assert repr(shards.shards) == "shards.shards"


def test_a_wrong_type_is_refused_with_both_types(source: Source, vocabulary: Vocabulary) -> None:
    with pytest.raises(
        TypeError, match=r"node node, input tokenizer: expects Tokenizer, but source\.documents is Documents"
    ):
        wire(Shards, documents=[source.documents], tokenizer=source.documents)


def test_a_required_port_must_be_wired(source: Source) -> None:
    with pytest.raises(TypeError, match="node node, input tokenizer: nothing is wired to it, and it is required"):
        wire(Shards, documents=[source.documents])
    with pytest.raises(TypeError, match="input documents: nothing is wired"):
        wire(Vocabulary, documents=[])


def test_one_output_is_no_list(source: Source) -> None:
    with pytest.raises(TypeError, match="input documents: expects a list of outputs"):
        wire(Vocabulary, documents=source.documents)


def test_a_list_is_not_one_output(source: Source, vocabulary: Vocabulary) -> None:
    with pytest.raises(TypeError, match="input tokenizer: expects one output"):
        wire(Shards, documents=[source.documents], tokenizer=[vocabulary.tokenizer])


def test_an_unknown_port_is_refused(source: Source) -> None:
    with pytest.raises(TypeError, match="node node: stage probe_tokenizer has no input docs, texts"):
        wire(Vocabulary, documents=[source.documents], texts=[], docs=[])


@pytest.mark.parametrize("thing", ["source", 7, Source(name="whole_node")])
def test_only_outputs_can_be_wired(thing: Any) -> None:
    with pytest.raises(TypeError, match="is not an output of a node"):
        wire(Vocabulary, documents=[thing])


def test_a_text_is_not_taken_for_a_list_of_outputs() -> None:
    with pytest.raises(TypeError, match="is not an output of a node"):
        wire(Vocabulary, documents="source")


# --- configuration ----------------------------------------------------------------------------------------------------


def test_identity_leaves_out_operational_fields_only() -> None:
    identity = TrainConfig().identity()
    assert identity == {"learning_rate": 0.1, "sequence_length": None, "steps": 4, "shape": {"layers": 2, "hidden": 8}}
    assert TrainConfig(workers=8, save_every=9, step_seconds=1.0, die_after=3).identity() == identity


class Nested(StageConfig):
    """An operational field with constraints of its own, after other annotations."""

    threads: Operational[int] = Field(default=1, ge=1, le=4, description="threads")
    maybe: Operational[int | None] = Field(default=None, description="threads, perhaps")
    seed: int = Field(default=1, description="seed")


def test_an_operational_field_keeps_its_constraints() -> None:
    assert Nested().identity() == {"seed": 1}
    with pytest.raises(ValidationError):
        Nested(threads=5)


def test_a_configuration_is_frozen_and_refuses_unknown_keys() -> None:
    config = SourceConfig()
    with pytest.raises(ValidationError):
        config.text = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        SourceConfig.model_validate({"txt": "b"})


def test_a_default_is_validated_like_any_other_value() -> None:
    class Broken(StageConfig):
        size: int = Field(default=-1, gt=0)

    with pytest.raises(ValidationError):
        Broken()


# --- facets -----------------------------------------------------------------------------------------------------------


def check(inputs: Mapping[str, Sequence[tuple[str, Facets]]], **config: Any) -> None:
    Train.check_facets("train_1", TrainConfig(**config), inputs)


def test_inputs_that_disagree_are_refused_with_both_names_and_values() -> None:
    with pytest.raises(ConfigError) as caught:
        check(
            {
                "shards": [("shards", {"tokenizer_digest": "d1"})],
                "tokenizer": [("vocabulary", {"tokenizer_digest": "d2"})],
            }
        )
    assert (
        str(caught.value)
        == "node train_1: its inputs disagree on tokenizer_digest: shards has d1, vocabulary has d2; wire both to the"
        " same origin"
    )


def test_two_inputs_at_one_port_must_agree_too() -> None:
    with pytest.raises(ConfigError, match="disagree on vocab_size: a has 7, b has 8"):
        check({"shards": [("a", {"vocab_size": 7}), ("b", {"vocab_size": 8})]})


def test_what_is_not_known_yet_is_not_compared() -> None:
    check(
        {"shards": [("shards", {"tokenizer_digest": None})], "tokenizer": [("vocabulary", {"tokenizer_digest": "d2"})]}
    )
    check({"shards": [("shards", {})], "tokenizer": [("vocabulary", {"tokenizer_digest": "d2"})]})


def test_facets_that_are_not_shared_may_differ() -> None:
    check({"shards": [("a", {"dtype": "uint16"}), ("b", {"dtype": "uint32"})]})


def test_the_sequence_length_must_be_the_one_of_the_shards() -> None:
    shards = {"shards": [("tokenize_short", {"sequence_length": 16})]}
    check(shards, sequence_length=16)
    check(shards)  # None: takes what comes
    with pytest.raises(ConfigError) as caught:
        check(shards, sequence_length=32)
    assert (
        str(caught.value)
        == "node train_1: sequence_length is 32, but its input shards from tokenize_short has sequence_length 16; "
        "set train_1.sequence_length = 16, or change tokenize_short"
    )


# --- how a stage ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_class", "code"),
    [("ok", 0), ("bug", 1), ("config", 64), ("input", 65), ("infra", 69), ("oom", 71), ("preempted", 75)],
)
def test_every_exit_class_has_a_status_of_its_own(exit_class: str, code: int) -> None:
    assert ExitClass(exit_class).code == code
    assert ExitClass.from_code(code) is ExitClass(exit_class)


def test_no_exit_class_is_left_out() -> None:
    assert len({exit_class.code for exit_class in ExitClass}) == len(ExitClass)


@pytest.mark.parametrize("code", [-15, -9, -2, -1, 143, 137, 130, 129])
def test_a_signal_from_outside_is_a_preemption(code: int) -> None:
    assert ExitClass.from_code(code) is ExitClass.PREEMPTED


@pytest.mark.parametrize("code", [-11, -6, 139, 134, 2, 127, 255])
def test_a_crash_is_a_bug(code: int) -> None:
    assert ExitClass.from_code(code) is ExitClass.BUG


@pytest.mark.parametrize(
    ("error", "exit_class"),
    [
        (ConfigError, "config"),
        (InputError, "input"),
        (InfraError, "infra"),
        (Preempted, "preempted"),
        (StageError, "bug"),
    ],
)
def test_every_expected_error_has_a_class(error: type[StageError], exit_class: str) -> None:
    assert error.exit_class == exit_class


# --- documents and defaults -------------------------------------------------------------------------------------------


def test_the_request_has_no_place_for_credentials() -> None:
    fields = StageRequest.model_fields.keys() | StoreAddress.model_fields.keys()
    assert not {
        name for name in fields if "secret" in name or "credential" in name or "password" in name or "token" in name
    }
    with pytest.raises(ValidationError):
        StoreAddress.model_validate({"bucket": "b", "secret_key": "s"})


def test_a_stage_that_says_nothing_gets_small_defaults() -> None:
    assert Source.resources(SourceConfig()) == Resources(cpus=1, memory_gib=2, gpus=0, nodes=1, scratch_gib=10)
    assert Source.facets(SourceConfig(), {}) == {}
    assert Source.work(SourceConfig(), {}) == Work()


@pytest.mark.parametrize("wrong", [{"cpus": 0}, {"gpus": -1}, {"nodes": 0}, {"memory": 4}])
def test_resources_are_validated(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Resources.model_validate(wrong)


class Open(Stage[Nested], env="data", revision=2):
    """A stage in a module that is no stage package still works as a class."""

    made: Output[Documents] = output()
    match: ClassVar[Mapping[str, str]] = {}


def test_outputs_are_objects_of_their_node() -> None:
    first, second = Open(name="first"), Open(name="second")
    assert first.made.node is first
    assert first.made is not second.made
    assert first.made.type is Documents
