"""The fused model: where an image goes, what the loss is of, and that a written folder is the model that was
written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stages.core.errors import InputError
from stages.evaluate_vlm.answering import Answerer
from stages.lib.formats import vocabulary
from stages.lib.modeling.hf_checkpoint import load_model
from stages.lib.vision import hf_checkpoint, prompts
from stages.lib.vision.conversations import Turn
from stages.lib.vision.modeling_moxin_vlm import IMAGENET_MEAN, IMAGENET_STD, MoxinVLM, pixel_values
from stages.lib.vision.towers import draw_towers
from stages.vlm.spec import padded
from tests.support.limits import HANG
from tests.support.paths import ROOT
from tests.support.vision import DINO, PATCHES, SHAPE, SIGLIP, SIZE, base_model, save_whole, whole_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Any) -> MoxinVLM:
    """A model with larger patch embeddings than a fresh one has, so that images change its answers."""
    dino, siglip = draw_towers(DINO, SIGLIP, SIZE, seed=1)
    made = whole_model(base.path, dino.config, siglip.config, padded(base.facets["vocab_size"]), seed=2)
    made.dino, made.siglip = dino, siglip
    with torch.no_grad():
        made.projector.fc3.weight.mul_(8)
        made.language_model.lm_head.weight.mul_(20)  # drawn weights hardly tell tokens apart
    return made.eval()


@pytest.fixture(scope="module")
def exported(model: MoxinVLM, base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_whole(model, folder, base.path, "# card\n")
    return folder


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 20 + 9 * i, 3), np.uint8)) for i in range(count)]


def test_pixels_are_squashed_and_normalized_for_each_tower() -> None:
    white = pixel_values([Image.new("RGB", (40, 10), (255, 255, 255))], SIZE)
    assert white.shape == (1, 6, SIZE, SIZE)
    for channel in range(3):
        assert white[0, channel].allclose(torch.tensor((1 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]))
    assert white[0, 3:].allclose(torch.ones(3, SIZE, SIZE))
    black = pixel_values([Image.new("RGB", (8, 8))], SIZE)
    assert black[0, 3:].allclose(-torch.ones(3, SIZE, SIZE))


def test_the_vocabulary_is_padded_as_upstream() -> None:
    assert padded(32_000) == 32_064
    assert padded(2048) == 2112
    assert padded(62) == 64


def test_a_new_model_keeps_the_base_and_pytorchs_projector(base: Any, model: MoxinVLM) -> None:
    """Text alone gives the base's logits; fc1 is uniform in +-1/sqrt(fan in), not normal with 0.02."""
    entries = base.facets["vocab_size"]
    config = model.config
    fresh = whole_model(base.path, config.dino_config, config.siglip_config, padded(entries), seed=2)
    reference = load_model(base.path)
    ids = torch.randint(3, entries, (2, 9))
    with torch.no_grad():
        found, wanted = fresh(input_ids=ids).logits, reference(ids)
    assert found.shape[-1] == padded(entries)
    assert torch.allclose(found[..., :entries], wanted, atol=1e-5)
    embeddings = fresh.get_input_embeddings().weight.detach()
    assert torch.allclose(
        embeddings[entries:], embeddings[:entries].mean(0).expand(padded(entries) - entries, -1), atol=1e-6
    )
    bound = config.feature_width**-0.5
    weight = fresh.projector.fc1.weight.detach()
    assert weight.abs().max() <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert config.image_token_id == entries + 1
    assert config.pad_token_id == entries
    again = whole_model(base.path, config.dino_config, config.siglip_config, padded(entries), seed=2)
    other = whole_model(base.path, config.dino_config, config.siglip_config, padded(entries), seed=3)
    assert torch.equal(again.projector.fc2.weight, fresh.projector.fc2.weight)
    assert not torch.equal(other.projector.fc2.weight, fresh.projector.fc2.weight)


def test_patches_stand_right_after_bos(base: Any, model: MoxinVLM) -> None:
    """The sequence that the decoder reads is BOS, the projected patches, the prompt: built here by hand."""
    tokenizer = vocabulary.load(base.path)
    ids = prompts.prompt_ids(tokenizer, "\nWhat color is the circle?", model.config.image_token_id, PATCHES)
    pixels = pixel_values(pictures(1), SIZE)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        patches = model.projector(model.image_features(pixels))
        text = embed(torch.tensor([ids[1 + PATCHES :]]))
        by_hand = torch.cat([embed(torch.tensor([[vocabulary.BOS_ID]])), patches, text], dim=1)
        wanted = model.language_model(inputs_embeds=by_hand).logits
        found = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
    assert torch.allclose(found, wanted, atol=1e-6)


def test_the_loss_is_of_answers_only(base: Any, model: MoxinVLM) -> None:
    tokenizer = vocabulary.load(base.path)
    turns = [Turn(True, "<image>\nWhat?"), Turn(False, "red"), Turn(True, "And </s> here?"), Turn(False, "the circle")]
    found = prompts.encode(tokenizer, turns, model.config.image_token_id, PATCHES, 500)
    answers = [
        *prompts.answer_ids(tokenizer, "red"),
        vocabulary.EOS_ID,
        *prompts.answer_ids(tokenizer, "the circle"),
        vocabulary.EOS_ID,
    ]
    assert [label for label in found.labels if label != prompts.IGNORED] == answers
    assert found.ids[: 1 + PATCHES] == [vocabulary.BOS_ID, *[model.config.image_token_id] * PATCHES]
    assert found.ids.count(vocabulary.EOS_ID) == 2  # '</s>' in a question is text
    text = tokenizer.decode(found.ids[1 + PATCHES :], skip_special_tokens=False)
    assert "In: What?" in text
    ids, labels = torch.tensor([found.ids]), torch.tensor([found.labels])
    features = model.image_features(pixel_values(pictures(1), SIZE))
    with torch.no_grad():
        logits = model(input_ids=ids, patch_features=features).logits
        loss = model(input_ids=ids, patch_features=features, labels=labels).loss
    wanted = F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100)
    assert float(loss) == pytest.approx(float(wanted), abs=1e-5)


def test_a_row_is_cut_at_its_longest() -> None:
    assert prompts.Encoded([1, 2, 3], [-100, 2, -100]).answer_tokens == 1


def test_an_exported_folder_gives_equal_logits_in_a_fresh_process(
    model: MoxinVLM, exported: Path, tmp_path: Path
) -> None:
    ids = torch.tensor([[1, *[model.config.image_token_id] * PATCHES, 40, 50, 60]])
    pixels = torch.randn(1, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.save((ids, pixels, model(input_ids=ids, pixel_values=pixels).logits), tmp_path / "case.pt")
    code = (
        "import sys, torch\ntorch.set_num_threads(1)\nfrom pathlib import Path\nfrom stages.lib.vision import "
        "hf_checkpoint\n"
        "model, tokenizer = hf_checkpoint.load(Path(sys.argv[1]))\n"
        "ids, pixels, wanted = torch.load(sys.argv[2], weights_only=True)\n"
        "with torch.no_grad(): found = model(input_ids=ids, pixel_values=pixels).logits\n"
        "assert torch.equal(found, wanted), (found - wanted).abs().max()\n"
        "assert 'transformers_modules' not in ' '.join(sys.modules)\nprint('equal')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported), str(tmp_path / "case.pt")],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=HANG,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr


def test_an_exported_folder_stands_alone(model: MoxinVLM, exported: Path, tmp_path: Path) -> None:
    """Without this repository: transformers, the copied module, the tokenizer, and generation."""
    ids = torch.tensor([[1, *[model.config.image_token_id] * PATCHES, 40, 50, 60]])
    pixels = torch.randn(1, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
        made = model.generate(
            input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=6, do_sample=False
        )
    torch.save((ids, pixels, logits, made), tmp_path / "case.pt")
    code = (
        "import sys, torch\ntorch.set_num_threads(1)\nsys.modules['stages'] = None\nfrom transformers import"
        " AutoModelForImageTextToText, AutoTokenizer\nmodel = AutoModelForImageTextToText.from_pretrained(sys.argv[1],"
        " trust_remote_code=True).eval()\nids, pixels, logits, made = torch.load(sys.argv[2], weights_only=True)\nwith"
        " torch.no_grad(): found = model(input_ids=ids, pixel_values=pixels).logits\nassert torch.equal(found,"
        " logits)\nagain = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels,"
        " max_new_tokens=6, do_sample=False)\nassert again.tolist() == made.tolist()\ntokenizer ="
        " AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\nassert"
        " tokenizer.convert_tokens_to_ids('<image>') == model.config.image_token_id\nassert tokenizer.pad_token_id =="
        " model.config.pad_token_id\nprint('alone')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported), str(tmp_path / "case.pt")],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=HANG,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == "alone", done.stderr


def test_the_folder_is_the_same_bytes_again(model: MoxinVLM, exported: Path, base: Any, tmp_path: Path) -> None:
    save_whole(model, tmp_path, base.path, "# card\n")
    for path in sorted(exported.iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_batched_answers_are_those_of_single_questions(exported: Path) -> None:
    model, tokenizer = hf_checkpoint.load(exported)
    questions = [
        "What?",
        "What color is the green circle on the left of everything?",
        "Is there a red square?",
        "A B C?",
        "the the the",
    ]
    answers, likelihoods = {}, {}
    for size in (1, 5):
        answerer = Answerer(model, tokenizer, size, torch.device("cpu"))
        answerer.look([(f"{i}.jpg", image) for i, image in enumerate(pictures(5))])
        asked = [answerer.ask(question, f"{i}.jpg") for i, question in enumerate(questions)]
        answers[size] = answerer.write(asked, 12)
        likelihoods[size] = [answerer.choose(asked, options) for options in (("Yes", "No"), ("quite so", "not"))]
    assert answers[1] == answers[5]
    assert len(set(answers[1])) > 1
    for one, many in zip(likelihoods[1], likelihoods[5], strict=True):
        assert torch.allclose(torch.tensor(one), torch.tensor(many), atol=1e-4)


def test_options_of_several_tokens_are_scored_by_their_joint_likelihood(exported: Path) -> None:
    model, tokenizer = hf_checkpoint.load(exported)
    answerer = Answerer(model, tokenizer, 4, torch.device("cpu"))
    answerer.look([("a.jpg", pictures(1)[0])])
    asked = answerer.ask("What?", "a.jpg")
    options = ("Yes", "xyz")
    found = answerer.choose([asked], options)[0]
    features = answerer._features["a.jpg"][None]
    for option, value in zip(options, found, strict=True):
        tokens = prompts.answer_ids(tokenizer, option)
        with torch.no_grad():
            logits = (
                model(input_ids=torch.tensor([[*asked.ids, *tokens]]), patch_features=features)
                .logits[0]
                .log_softmax(-1)
            )
        by_hand = sum(float(logits[len(asked.ids) - 1 + i, token]) for i, token in enumerate(tokens))
        assert value == pytest.approx(by_hand, abs=1e-4)


def test_without_a_cache_the_answer_is_the_same(exported: Path) -> None:
    model, tokenizer = hf_checkpoint.load(exported)
    ids = torch.tensor([prompts.prompt_ids(tokenizer, "What?", model.config.image_token_id, PATCHES)])
    features = model.image_features(pixel_values(pictures(1), SIZE))
    made = [
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            patch_features=features,
            max_new_tokens=8,
            do_sample=False,
            use_cache=cache,
        ).tolist()
        for cache in (True, False)
    ]
    assert made[0] == made[1]


def test_an_image_changes_the_answer(exported: Path) -> None:
    model, tokenizer = hf_checkpoint.load(exported)
    answerer = Answerer(model, tokenizer, 8, torch.device("cpu"))
    answerer.look([(f"{i}", image) for i, image in enumerate(pictures(8))])
    assert len(set(answerer.write([answerer.ask("What?", str(i)) for i in range(8)], 8))) > 1


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", lambda text: "{", r"config\.json of the model cannot be read"),
        ("config.json", lambda text: text.replace('"moxin_vlm"', '"mistral"'), "model_type is 'mistral'"),
        ("model.safetensors", lambda data: data[:100], "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    exported: Path, tmp_path: Path, file: str, damage: Any, message: str
) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink()
    if file.endswith(".json"):
        (tmp_path / file).write_text(damage((exported / file).read_text()))
    else:
        (tmp_path / file).write_bytes(damage((exported / file).read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        hf_checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_drawn_in_silence(exported: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in exported.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).symlink_to(path)
    state = load_file(exported / "model.safetensors")
    del state["projector.fc2.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"^the vision-language model.s folder has no weight projector\.fc2\.weight: nothing is drawn"
    ):
        hf_checkpoint.load(tmp_path)


def test_the_exported_configuration_says_what_it_is(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"]["AutoModelForImageTextToText"] == "modeling_moxin_vlm.MoxinVLM"
    assert config["text_config"]["sliding_window"] == SHAPE.window
    assert config["text_config"]["attention_dropout"] == 0.0
    assert config["dino_config"]["image_size"] == config["siglip_config"]["image_size"] == SIZE
    assert config["siglip_config"]["hidden_act"] == "gelu"
    assert json.loads((exported / "preprocessor_config.json").read_text())["resize"]["strategy"] == "resize-naive"
