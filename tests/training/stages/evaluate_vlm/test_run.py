"""The seven scorers by their definitions, the blind control, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.core.artifacts import EvalReport, Model
from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.evaluate_vlm import scorers
from stages.evaluate_vlm.run import derangement, run
from stages.evaluate_vlm.spec import EvaluateVlm, EvaluateVlmConfig
from stages.lib.formats.reports import parse_report
from stages.lib.vision.towers import draw_towers
from stages.vlm.spec import padded
from tests.support.scenes import read_jsonl, scenes
from tests.support.vision import DINO, SIGLIP, SIZE, base_model, save_whole, whole_model

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("red", "red", 1),
        ("Red.", "red", 1),
        ('"RED"', "red", 1),
        ("dark red", "red", 0),
        ("", "red", 0),
        ("red ", "red", 1),
        ("yes!", "yes", 1),
    ],
)
def test_gqa_is_an_exact_match(answer: str, truth: str, score: float) -> None:
    assert scorers.exact_match(answer, truth) == score


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The red dog", "red dog"),
        ("two", "2"),
        ("None", "0"),
        ("isnt it", "isn't it"),
        ("a t-shirt", "t shirt"),
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("1,000", "1000"),
        ("3.5 kg.", "3.5 kg"),
        ("  Unanswerable \n", "unanswerable"),
        ("what?!", "what"),
    ],
)
def test_vqa_answers_are_normalized_as_the_official_evaluation_does(answer: str, normal: str) -> None:
    assert scorers.vqa_normalized(answer) == normal


@pytest.mark.parametrize(("said", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vizwiz_leaves_each_person_out_in_turn(said: int, score: float) -> None:
    """10 answers, `said` of them 'red': 1 -> 9 x 1/3, 2 -> (2 x 1/3 + 8 x 2/3), 3 -> (3 x 2/3 + 7 x 1) over 10."""
    assert scorers.vqa_accuracy("Red", ["red"] * said + ["blue"] * (10 - said)) == pytest.approx(score)


@pytest.mark.parametrize(
    "text",
    ["", "[0, 0, 1]", "[0, 0, 1, 1, 1]", "(0, 0, 1, 1)", "[0.5, 0, 0.5, 1]", "[0, 0, 1.2, 1]", "[-0.1, 0, 1, 1]", "red",
     "[0, 0, 1, True]",
     "[0, 0, '1', 1]", "__import__('os').system('true')", "[" * 5000, "[0.1, 0.1, 0.5, 0.5] x", "[1e999, 0, 1, 1]",
     "[0, 0, 1j, 1]"],
)  # fmt: skip
def test_what_is_no_box_is_wrong(text: str) -> None:
    assert scorers.parse_box(text) is None
    assert scorers.grounded(text, (0.0, 0.0, 1.0, 1.0), 0.25) == 0


def test_boxes_are_compared_by_their_overlap() -> None:
    assert scorers.parse_box(" [0.10, 0.2, 0.5, 1] ") == (0.1, 0.2, 0.5, 1.0)
    assert scorers.iou((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75)) == pytest.approx(1 / 7)
    assert scorers.iou((0, 0, 0.2, 0.2), (0.5, 0.5, 1, 1)) == 0
    half = "[0.00, 0.00, 0.50, 1.00]"
    assert scorers.grounded(half, (0.0, 0.0, 1.0, 1.0), 0.5) == 1  # exactly a half counts
    assert scorers.grounded(half, (0.0, 0.0, 1.0, 1.0), 0.51) == 0
    assert scorers.normalized_box((64, 48, 320, 480), (640, 480)) == (0.1, 0.1, 0.5, 1.0)


unit = st.floats(0, 1, allow_nan=False)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 0.01, max(b[1], b[3]) + 0.01)
)


@given(boxes, boxes)
def test_overlap_is_symmetric_and_a_share(one: scorers.Box, other: scorers.Box) -> None:
    value = scorers.iou(one, other)
    assert 0 <= value <= 1 + 1e-9
    assert value == pytest.approx(scorers.iou(other, one))
    assert scorers.iou(one, one) == pytest.approx(1)


def test_the_mean_of_groups() -> None:
    value, error = scorers.grouped([1, 1, 0, 1, 0, 0, 0, 0], ["a"] * 2 + ["b"] * 2 + ["c"] * 4)
    assert value == pytest.approx((1 + 0.5 + 0) / 3)  # the mean of three means, not of eight scores
    assert error == pytest.approx(0.5 / 3)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=30, unique=True), st.integers(0, 5))
def test_no_image_keeps_its_place_in_the_blind_control(names: list[str], seed: int) -> None:
    other = derangement(names, seed)
    assert sorted(other) == sorted(other.values()) == sorted(names)
    assert all(name != taken for name, taken in other.items())
    assert other == derangement(list(reversed(names)), seed)


# --- the stage
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[LocalArtifact]]:
    root = tmp_path_factory.mktemp("evaluate")
    _, suite = scenes(root / "scenes")
    base = base_model(root / "base")
    dino, siglip = draw_towers(DINO, SIGLIP, SIZE, seed=1)
    model = whole_model(base.path, dino.config, siglip.config, padded(base.facets["vocab_size"]), seed=2)
    model.dino, model.siglip = dino, siglip
    with torch.no_grad():
        model.projector.fc3.weight.mul_(8)
    (root / "model").mkdir()
    save_whole(model.eval(), root / "model", base.path, "card")
    return {
        "model": [local_artifact(Model, root / "model", {"architecture": "MoxinVLM"}, {"benchmarks": ["piqa"]})],
        "suite": [suite],
    }


def config(**changes: Any) -> EvaluateVlmConfig:
    return EvaluateVlmConfig(
        **({"precision": "fp32", "threads": 1, "max_new_tokens": 4, "batch_size": 5, "pictures": 2} | changes)
    )


@pytest.fixture(scope="module")
def done(
    inputs: dict[str, list[LocalArtifact]], tmp_path_factory: pytest.TempPathFactory
) -> LocalContext[EvaluateVlmConfig]:
    ctx = LocalContext(tmp_path_factory.mktemp("done"), config(), inputs)
    run(ctx)
    return ctx


def test_the_report_has_every_benchmark_with_its_control(done: LocalContext[EvaluateVlmConfig]) -> None:
    report = parse_report((done.output("report") / "report.json").read_bytes(), "report.json")
    heads = [score for score in report.results if score.headline]
    assert [score.task for score in heads] == ["gqa", "vizwiz", "refcoco+", "ocid-ref", "vsr", "pope", "tally-qa"]
    assert [score.metric for score in heads] == [
        "exact_match",
        "vqa_accuracy",
        "iou_0.5",
        "iou_0.25",
        "acc",
        "acc",
        "acc",
    ]
    assert [score.table for score in heads] == ["table_8"] * 7
    assert [score.column for score in heads] == ["GQA", "VizWiz", "RefCOCO+", "OCID-Ref", "VSR", "POPE", "TallyQA"]
    assert {score.column for score in report.results if not score.headline} == {None}
    greedy = {"do_sample": False, "max_new_tokens": done.config.max_new_tokens}
    written = {score.task for score in heads if score.generation == greedy}
    assert written == {"gqa", "vizwiz", "refcoco+", "ocid-ref"}
    assert {score.metric for score in heads if score.generation is None} == {"acc"}, "the others choose an option"
    for score in heads:
        assert score.n == score.n_total == 12
        assert score.control is not None
        assert score.control.gain == pytest.approx(score.value - score.control.value)
        assert not score.comparable_to_paper
        assert "rendered" in score.note
    assert report.aggregates[0].value == pytest.approx(sum(score.value for score in heads) / 7)
    assert {score.task for score in report.results if not score.headline} >= {
        "pope/adversarial",
        "pope/popular",
        "pope/random",
        "ocid-ref/minimum",
    }
    pope = {score.task: score.value for score in report.results if score.task.startswith("pope")}
    assert pope["pope"] == pytest.approx((pope["pope/adversarial"] + pope["pope/popular"] + pope["pope/random"]) / 3)


def test_samples_add_up_to_the_scores(done: LocalContext[EvaluateVlmConfig]) -> None:
    report = parse_report((done.output("report") / "report.json").read_bytes(), "report.json")
    for score in report.results:
        if score.headline and score.task != "pope":
            rows = read_jsonl(done.output("report") / "samples" / f"visual.{score.task}.jsonl")
            assert sum(row["score"] for row in rows) / len(rows) == pytest.approx(score.value)
            assert score.control is not None
            assert sum(row["blind_score"] for row in rows) / len(rows) == pytest.approx(score.control.value)


def test_pictures_are_kept_with_question_answer_and_truth(done: LocalContext[EvaluateVlmConfig]) -> None:
    kept = json.loads((done.output("report") / "pictures.json").read_text())
    assert len(kept) == 14
    for row in kept:
        assert Image.open(done.output("report") / row["file"]).size == (32, 32)
        assert {"question", "answer", "truth", "score", "blind_answer", "benchmark"} <= row.keys()


def test_the_same_again_and_without_a_control(
    inputs: dict[str, list[LocalArtifact]], done: LocalContext[EvaluateVlmConfig], tmp_path: Path
) -> None:
    again = LocalContext(tmp_path / "again", config(batch_size=12), inputs)
    run(again)
    for path in sorted(done.output("report").rglob("*.json*")):
        assert (again.output("report") / path.relative_to(done.output("report"))).read_bytes() == path.read_bytes(), (
            path.name
        )
    short = LocalContext(tmp_path / "short", config(blind=False, limit=5, benchmarks=("gqa", "vsr")), inputs)
    run(short)
    report = parse_report((short.output("report") / "report.json").read_bytes(), "report.json")
    heads = [score for score in report.results if score.headline]
    assert [(score.n, score.n_total, score.control) for score in heads] == [(5, 12, None)] * 2
    assert "5 of 12 questions" in heads[0].note


def test_a_report_of_before_has_no_control(done: LocalContext[EvaluateVlmConfig]) -> None:
    value = json.loads((done.output("report") / "report.json").read_text())
    for row in value["results"]:
        del row["control"]
    assert parse_report(json.dumps(value).encode(), "old").results[0].control is None


def test_a_model_that_sees_nothing_is_refused(inputs: dict[str, list[LocalArtifact]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its model from sft is a MistralForCausalLM, which sees no images"):
        EvaluateVlm.check_facets(
            "evaluate_vlm", config(), {"model": [("sft", {"architecture": "MistralForCausalLM"})], "suite": []}
        )
    base = base_model(tmp_path / "base")
    with pytest.raises(InputError, match="model_type is 'mistral'"):
        run(LocalContext(tmp_path / "run", config(), {**inputs, "model": [base]}))


def test_a_suite_that_lacks_a_benchmark_or_an_image_is_refused(
    inputs: dict[str, list[LocalArtifact]], tmp_path: Path
) -> None:
    suite = inputs["suite"][0]
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        for path in suite.path.iterdir():
            (folder / path.name).symlink_to(path)
    listing = json.loads((suite.path / "suite.json").read_text())
    (tmp_path / "a" / "suite.json").unlink()
    listing["data_sets"] = [row for row in listing["data_sets"] if row["id"] != "vsr"]
    (tmp_path / "a" / "suite.json").write_text(json.dumps(listing))
    with pytest.raises(InputError, match="does not hold vsr; it has gqa"):
        run(LocalContext(tmp_path / "ra", config(), {**inputs, "suite": [local_artifact(EvalReport, tmp_path / "a")]}))
    (tmp_path / "b" / "gqa-00000.zip").unlink()
    with pytest.raises(InputError, match=r"benchmark gqa: image n\d+\.jpg cannot be used"):
        run(LocalContext(tmp_path / "rb", config(), {**inputs, "suite": [local_artifact(EvalReport, tmp_path / "b")]}))
