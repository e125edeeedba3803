"""Training the VLM: batches, loss, resume, stored features against towers in the loop, and one process against two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.core.artifacts import ImageConversations, ImageFeatures, Model
from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError, Preempted
from stages.core.resources import Resources
from stages.core.testing import LocalContext, local_artifact
from stages.image_features.run import run as see
from stages.image_features.spec import SeeImages
from stages.lib.formats import vocabulary
from stages.lib.vision import hf_checkpoint
from stages.lib.vision.conversations import Conversation, Turn, read_rows, write_rows
from stages.lib.vision.features import Features
from stages.lib.vision.shape import TowerShape
from stages.vlm.batches import encode_rows, epoch_batches, steps_an_epoch
from stages.vlm.run import run, schedule
from stages.vlm.spec import TrainVlm, VlmConfig
from tests.support.distributed import run_processes
from tests.support.examples import max_examples
from tests.support.scenes import scenes
from tests.support.vision import PATCHES, base_model, features, features_config, whole_model

torch.set_num_threads(1)
Inputs = dict[str, list[LocalArtifact]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("vlm")
    train, _ = scenes(root / "scenes")
    towers, seen = features(root / "features", train)
    return {"base": [base_model(root / "base")], "conversations": [train], "towers": [towers], "features": [seen]}


def config(**changes: Any) -> VlmConfig:
    values: dict[str, Any] = {
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "max_length": 256,
        "threads": 1,
        "log_every": 1,
    }
    return VlmConfig(**(values | {"checkpoint_every": 4} | changes))


def curve(ctx: LocalContext[VlmConfig]) -> list[tuple[float, ...]]:
    return [(row["step"], row["loss"], row["learning_rate"], row["grad_norm"]) for row in ctx.metrics]


def trained(root: Path, inputs: Inputs, **changes: Any) -> LocalContext[VlmConfig]:
    ctx = LocalContext(root, config(**changes), inputs)
    run(ctx)
    return ctx


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> LocalContext[VlmConfig]:
    return trained(tmp_path_factory.mktemp("whole"), inputs)


def weights(ctx: LocalContext[VlmConfig]) -> dict[str, torch.Tensor]:
    return hf_checkpoint.load(ctx.output("model"))[0].state_dict()


# --- features
# ----------------------------------------------------------------------------------------------------------


def test_features_are_stored_once_for_each_image(inputs: Inputs) -> None:
    seen = Features(inputs["features"][0].entries())
    names = list(dict.fromkeys(row.image for row in read_rows(inputs["conversations"][0].path) if row.image))
    assert len(seen) == len(names) == 24
    assert seen.batch(names[3:5]).shape == (2, PATCHES, 40)
    assert torch.equal(seen.batch([names[5], names[5]])[0], seen.batch([names[5]])[0])
    assert not torch.allclose(seen.batch([names[0]]), seen.batch([names[1]]))


def test_batch_size_and_dtype_of_the_features(inputs: Inputs, tmp_path: Path) -> None:
    _, alone = features(tmp_path / "a", inputs["conversations"][0], batch_size=1)
    _, half = features(tmp_path / "b", inputs["conversations"][0], dtype="bf16")
    first = Features(inputs["features"][0].entries())
    names = first.names
    wanted = first.batch(names)
    assert torch.allclose(Features(alone.entries()).batch(names), wanted, atol=1e-5)
    assert torch.equal(Features(half.entries()).batch(names), wanted.bfloat16())


def test_the_stated_facets_are_the_planned_ones(inputs: Inputs, whole: LocalContext[VlmConfig]) -> None:
    planned = SeeImages.facets(features_config(), {"images": [{}]})
    for port in ("towers", "features"):
        assert planned[port].items() <= inputs[port][0].facets.items()
    model = TrainVlm.facets(whole.config, {port: [a.facets for a in many] for port, many in inputs.items()})["model"]
    assert {k: v for k, v in model.items() if v is not None}.items() <= whole.facets["model"].items()
    assert whole.facets["model"].keys() == Model.facets


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"origin": "weights"}, ConfigError, r"test\.dino_path = None: name a Hugging Face folder"),
        ({"precision": "bf16", "device": "cpu"}, ConfigError, r"test\.precision = 'bf16' on a CPU"),
    ],
)
def test_features_that_cannot_be_made_are_refused(
    inputs: Inputs, tmp_path: Path, changes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        see(LocalContext(tmp_path, features_config(**changes), {"images": inputs["conversations"]}))


def test_weights_of_another_sum_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    folder = inputs["towers"][0].path
    values = {
        "origin": "weights",
        "dino_path": str(folder / "dino"),
        "siglip_path": str(folder / "siglip"),
        "dino_sha256": "0" * 64,
    }
    with pytest.raises(InputError, match=r"test\.dino_sha256 is 000000000000\.\., but model\.safetensors has"):
        see(LocalContext(tmp_path / "a", features_config(**values), {"images": inputs["conversations"]}))
    ctx = LocalContext(
        tmp_path / "b", features_config(**(values | {"dino_sha256": None})), {"images": inputs["conversations"]}
    )
    see(ctx)
    again = Features(local_artifact(ImageFeatures, ctx.output("features")).entries())
    assert torch.equal(again.batch(again.names), Features(inputs["features"][0].entries()).batch(again.names))


def test_shapes_that_do_not_go_together_are_refused_before_the_run() -> None:
    with pytest.raises(ValidationError, match=r"image_size = 17 is no multiple of dino\.patch = 8"):
        features_config(image_size=17)
    with pytest.raises(ValidationError, match="features go side by side"):
        features_config(siglip=TowerShape(hidden=24, layers=3, heads=2, intermediate=40, patch=4))
    with pytest.raises(
        ConfigError, match=r"^vlm\.global_batch_size = 16 cannot be shared evenly by 3 parts: change either$"
    ):
        TrainVlm.check_resources("vlm", config(), Resources(nproc_per_node=3))


# --- batches
# -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 70), st.integers(0, 70), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2))
@max_examples(80)
def test_batches_hold_every_row_and_one_kind_each(
    with_image: int, without: int, batch: int, seed: int, epoch: int
) -> None:
    total = with_image + without
    if not total:
        return
    rng = np.random.default_rng(total)
    lengths = rng.integers(5, 90, total)
    images = rng.permutation(np.array([3] * with_image + [-1] * without))
    batches = epoch_batches(lengths, images, batch, seed, epoch)
    assert len(batches) == steps_an_epoch(with_image, without, batch)
    assert all(len(rows) == batch for rows in batches)
    assert all(len(set((images[rows] >= 0).tolist())) == 1 for rows in batches)
    assert set(np.concatenate(batches).tolist()) == set(range(total))
    assert lengths[batches[0]].max() == lengths.max()
    assert all((np.diff(lengths[rows]) <= 0).all() for rows in batches if len(set(rows.tolist())) == batch)
    again = epoch_batches(lengths, images, batch, seed, epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_bucketing_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 2000)
    batches = epoch_batches(lengths, np.zeros(2000, np.int64), 32, 0, 0)
    padded = sum(32 * lengths[rows].max() for rows in batches)
    assert padded < 1.1 * lengths.sum()
    assert not np.array_equal(batches[1], epoch_batches(lengths, np.zeros(2000, np.int64), 32, 0, 1)[1])


def test_rows_without_an_answer_within_the_longest_length_are_counted(inputs: Inputs) -> None:
    tokenizer = vocabulary.load(inputs["base"][0].path)
    long = Conversation("long", None, (Turn(True, "x" * 300), Turn(False, "y")))
    short = Conversation("short", "a.jpg", (Turn(True, "<image>\nQ?"), Turn(False, "red")))
    rows, counts = encode_rows([long, short], tokenizer, 999, PATCHES, 64)
    assert len(rows) == 1
    assert rows.names == ["a.jpg"]
    assert counts == {"left out: no answer within max_length": 1}
    tensors = rows.tensors(np.array([0]), 0)
    assert tensors["input_ids"][0, 1 : 1 + PATCHES].tolist() == [999] * PATCHES
    assert int((tensors["labels"] != -100).sum()) == rows.answer_counts[0]
    assert rows.answer_counts is rows.answer_counts  # counted once: every micro-batch asks
    assert rows.lengths is rows.lengths


# --- training
# ----------------------------------------------------------------------------------------------------------


def test_the_schedule_warms_up_and_ends_at_nothing() -> None:
    made = config(learning_rate=2e-5, warmup_ratio=0.03)
    rate = schedule(made, 10_396)
    rates = [rate(step) for step in range(10_396)]
    assert rates[0] == pytest.approx(2e-5 / 312)
    assert rates[311] == rates[312] == pytest.approx(2e-5)
    assert rates[312:] == sorted(rates[312:], reverse=True)
    assert rates[-1] < 1e-11


def test_it_trains_projector_and_decoder_and_leaves_the_towers(whole: LocalContext[VlmConfig], inputs: Inputs) -> None:
    # 76 rows make 5 batches with an image and 1 without, twice
    assert whole.stats["steps"] == len(whole.metrics) == 12
    assert np.mean([row["loss"] for row in whole.metrics[-4:]]) < 0.95 * np.mean(
        [row["loss"] for row in whole.metrics[:3]]
    )
    model = hf_checkpoint.load(whole.output("model"))[0]
    first = whole_model(
        inputs["base"][0].path,
        model.config.dino_config,
        model.config.siglip_config,
        model.config.text_config.vocab_size,
        7,
    )
    assert not torch.equal(model.projector.fc1.weight, first.projector.fc1.weight)
    assert not torch.equal(
        model.language_model.model.layers[0].mlp.up_proj.weight, first.language_model.model.layers[0].mlp.up_proj.weight
    )
    from stages.lib.vision.towers import load_towers

    dino, siglip = load_towers(inputs["towers"][0].path)
    assert model.dino is not None
    assert model.siglip is not None
    assert all(
        torch.equal(a, b) for a, b in zip(model.dino.state_dict().values(), dino.state_dict().values(), strict=True)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(model.siglip.state_dict().values(), siglip.state_dict().values(), strict=True)
    )
    card = (whole.output("model") / "README.md").read_text()
    assert "Where sources disagree" in card
    assert "a declared choice" in card


def test_a_stopped_run_resumes_to_the_same_curve_and_weights(
    whole: LocalContext[VlmConfig], inputs: Inputs, tmp_path: Path
) -> None:
    broken = LocalContext(tmp_path, config(), inputs, stop_after=7)
    with pytest.raises(Preempted, match="step 7 of 12"):
        run(broken)
    resumed = LocalContext(tmp_path, config(), inputs)
    run(resumed)
    assert curve(broken) + curve(resumed) == curve(whole)
    assert [row[0] for row in curve(resumed)] == list(range(8, 13))
    mine, other = weights(resumed), weights(whole)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_what_fails_after_the_last_step_costs_no_training(
    whole: LocalContext[VlmConfig], inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    broken = LocalContext(tmp_path, config(), inputs)
    with monkeypatch.context() as patch:
        patch.setattr("stages.vlm.run.hf_checkpoint.save_beside", full)
        with pytest.raises(OSError, match="no space"):
            run(broken)
    again = LocalContext(tmp_path, config(), inputs)
    run(again)
    assert curve(again) == []
    assert again.stats["final_loss"] == whole.stats["final_loss"]
    mine, other = weights(again), weights(whole)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_stored_features_give_what_towers_in_the_loop_give(
    whole: LocalContext[VlmConfig], inputs: Inputs, tmp_path: Path
) -> None:
    live = trained(tmp_path, {port: many for port, many in inputs.items() if port != "features"})
    assert live.stats["features"] == "computed for every batch"
    assert np.allclose(curve(live), curve(whole), rtol=1e-4)


def test_micro_batches_do_not_change_the_loss(whole: LocalContext[VlmConfig], inputs: Inputs, tmp_path: Path) -> None:
    assert np.allclose(curve(trained(tmp_path, inputs, micro_batch_size=5)), curve(whole), rtol=1e-4)


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_recomputing_changes_nothing(
    whole: LocalContext[VlmConfig], inputs: Inputs, tmp_path: Path, policy: str
) -> None:
    assert np.allclose(curve(trained(tmp_path, inputs, recompute=policy)), curve(whole), rtol=1e-5)


def test_any_number_of_processes_goes_on_from_any_other(
    whole: LocalContext[VlmConfig], inputs: Inputs, tmp_path: Path
) -> None:
    """4 -> 2 -> 4, with ZeRO 1, 2 and 3, each with several micro-batches: the curve and the weights of one process."""
    told: list[tuple[float, ...]] = []
    for size, zero, steps in ((4, 1, 3), (2, 2, 4), (4, 3, None)):
        made = config(micro_batch_size=2, parallel={"zero": zero})
        rows, outcome = run_processes(run, tmp_path, size, made, inputs, stop=steps)
        told += [(row["step"], row["loss"], row["learning_rate"], row["grad_norm"]) for row in rows]
        if steps is not None:
            assert outcome.startswith(f"Preempted: stopped at step {len(told)} of 12")
            assert steps <= len(rows) <= steps + 1  # asked while a step is measured, it stops after the next one
    assert outcome == "done"
    assert np.allclose(told, curve(whole), rtol=1e-3)
    mine, other = hf_checkpoint.load(tmp_path / "rank-0/out/model")[0].state_dict(), weights(whole)
    assert all(torch.allclose(mine[name], other[name], atol=1e-4) for name in other)
    assert not (tmp_path / "rank-1/out").exists()


def test_a_lost_process_is_a_preemption_and_the_next_attempt_goes_on(
    whole: LocalContext[VlmConfig], inputs: Inputs, tmp_path: Path
) -> None:
    before, outcome = run_processes(run, tmp_path, 2, config(), inputs, dies=7)  # ZeRO 3, unless it is set
    assert outcome.startswith("Preempted: another process of this stage was lost")
    assert 6 <= len(before) <= 8
    after, outcome = run_processes(run, tmp_path, 2, config(micro_batch_size=4), inputs)
    assert outcome == "done"
    assert np.allclose([row["loss"] for row in after], [row[1] for row in curve(whole)[4:]], rtol=1e-3)


def test_divergence_names_the_step_and_the_setting(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at step \d+: training diverged; lower learning_rate"):
        trained(tmp_path, inputs, learning_rate=1e30, warmup_ratio=0.0)


def test_features_of_other_images_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    other, _ = scenes(tmp_path / "scenes", seed=9)
    with pytest.raises(InputError, match="were made of other images"):
        trained(tmp_path / "a", {**inputs, "conversations": [other]})
    seen = inputs["features"][0]
    index = (seen.path / "index.json").read_text().replace("scenes/000003.jpg", "scenes/none.jpg")
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "index.json").write_text(index)
    (folder / "features-00000.safetensors").symlink_to(seen.path / "features-00000.safetensors")
    with pytest.raises(InputError, match=r"1 images have no features, such as scenes/000003\.jpg"):
        trained(tmp_path / "b", {**inputs, "features": [local_artifact(ImageFeatures, folder, seen.facets)]})


def test_wrong_inputs_are_refused_when_the_plan_is_made(inputs: Inputs) -> None:
    facets = {port: [(many[0].node, many[0].facets)] for port, many in inputs.items()}
    TrainVlm.check_facets("vlm", config(), facets)
    with pytest.raises(ConfigError, match="max_length is 257, but its base from test has 256 positions"):
        TrainVlm.check_facets("vlm", config(max_length=257), facets)
    with pytest.raises(ConfigError, match="max_length is 5, but an image from test takes 4 tokens"):
        TrainVlm.check_facets("vlm", config(max_length=5), facets)
    with pytest.raises(ConfigError, match="its base from sft is a MoxinVLM; wire a language model"):
        TrainVlm.check_facets("vlm", config(), {**facets, "base": [("sft", {"architecture": "MoxinVLM"})]})


def test_text_alone_trains_too(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder, [Conversation(str(i), None, (Turn(True, f"Say {i}."), Turn(False, "No"))) for i in range(20)])
    rows = local_artifact(ImageConversations, folder, {}, {"rows": 20})
    ctx = trained(tmp_path / "run", {**{k: v for k, v in inputs.items() if k != "features"}, "conversations": [rows]})
    assert ctx.stats["steps"] == 4


def test_an_empty_data_set_is_refused_before_the_processes_meet(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are read before: processes that do so at unequal speed would wait too long for each other."""
    monkeypatch.setattr("stages.vlm.run.distributed", None)
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "part-00000.jsonl").write_text("")
    rows = local_artifact(ImageConversations, folder)
    with pytest.raises(InputError, match="leave nothing to train on"):
        trained(tmp_path / "run", {**{k: v for k, v in inputs.items() if k != "features"}, "conversations": [rows]})
