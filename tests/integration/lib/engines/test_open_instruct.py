"""Engine open-instruct: its exact arguments, its log, its model, its resume, and every way it may end. The program is a
stand-in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stages.core.context import LocalArtifact
from stages.core.errors import ConfigError, InputError, Preempted
from stages.core.resources import Resources
from stages.core.testing import LocalContext
from stages.dpo.run import run as run_dpo
from stages.dpo.spec import DpoConfig
from stages.lib.engines import checkpoint_conversion, open_instruct, process
from stages.lib.finetuning import model_loading
from stages.lib.formats.examples import assistant, user
from stages.sft.run import run as run_sft
from stages.sft.spec import Sft, SftConfig
from tests.support import standins, tuning
from tests.support.limits import HANG
from tests.support.paths import DATA, ROOT

Inputs = dict[str, list[LocalArtifact]]

#: Tülu 3's recipe (open-instruct docs/tulu3.md at the pinned commit): 8 GPUs take 1 x 16 x 8 where it had 1 x 2 x 64.
RECIPE = {
    "engine": "open-instruct",
    "device": "cuda",
    "global_batch_size": 128,
    "micro_batch_size": 1,
    "seed": 123,
    "log_every": 1,
    "grad_clip": 1.0,
}
SMALL = {
    "engine": "open-instruct",
    "device": "cuda",
    "global_batch_size": 4,
    "micro_batch_size": 2,
    "max_length": 100,
    "max_new_tokens": 8,
    "samples": 2,
    "log_every": 1,
    "learning_rate": 1e-3,
    "threads": 1,
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("open-instruct")
    refused = [[user("</s>"), assistant("b")], *tuning.echoes(0, 10)]
    pairs = [([user(f"what {n}")], "it is 9", "no") for n in range(8)]
    return {
        "parent": [tuning.parent(root)],
        "conversations": [tuning.conversations(root / "train", refused)],
        "heldout": [tuning.conversations(root / "heldout", tuning.echoes(100, 4))],
        "preferences": [tuning.preferences(root / "pairs", pairs)],
        "heldout_pairs": [tuning.preferences(root / "heldout_pairs", pairs[:4])],
    }


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engine's interpreter is the stand-in; this machine has a GPU as far as the stage is told. Returns its
    record's path.
    """
    monkeypatch.setenv("STANDIN_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for engines")
    return tuning.stand_in(tmp_path, monkeypatch, "open_instruct", Path(standins.__file__).parent / "open_instruct.py")


def sft(root: Path, inputs: Inputs, stop_after: int | None = None, **changes: Any) -> LocalContext[SftConfig]:
    config = SftConfig(**{**SMALL, "label_smoothing": 0.0, **changes})
    return LocalContext(
        root, config, {k: inputs[k] for k in ("parent", "conversations", "heldout")}, stop_after=stop_after
    )


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_recipes_arguments_are_the_recorded_ones(stage: str) -> None:
    """Every option is one of upstream's at the pinned commit; the list is the recipe's, word for word."""
    if stage == "sft":
        config: Any = SftConfig(**RECIPE, label_smoothing=0.0)
        recipe = open_instruct.sft_recipe(config)
    else:
        config = DpoConfig(**RECIPE, recompute="full")
        recipe = open_instruct.dpo_recipe(config)
    words = open_instruct.arguments(config, recipe, Path("FOLDER"), 8)
    assert words == json.loads((DATA / "open_instruct_commands.json").read_text())[stage]
    known = json.loads((DATA / "open_instruct_options.json").read_text())
    assert known["commit"] == open_instruct.COMMIT
    assert f"COMMIT={open_instruct.COMMIT}" in (ROOT / "containers" / "open-instruct" / "Dockerfile").read_text()
    assert {w[2:] for w in words if w.startswith("--")} <= known[recipe.program].keys() | known["tokenizer"].keys()


def test_the_launch_is_in_options(tmp_path: Path) -> None:
    """accelerate 1.2.1 ends at once where a file of its own names `mixed_precision` beside DeepSpeed's file; options it
    takes.
    """
    from accelerate.commands.launch import launch_command_parser

    words = open_instruct.launch("python", 8, tmp_path / "deepspeed.json")
    assert words[:3] == ["python", "-m", "accelerate.commands.launch"]
    found: Any = launch_command_parser().parse_args([*words[3:], "program.py"])
    assert (found.num_processes, found.num_machines, found.mixed_precision, found.use_deepspeed) == (8, 1, "bf16", True)
    assert (found.deepspeed_config_file, found.config_file) == (str(tmp_path / "deepspeed.json"), None)
    assert open_instruct.launch("python", 8, tmp_path)[words.index("--main_process_port") + 1] != "29500"


def test_sft_gives_upstream_its_data_and_takes_its_model(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    ctx = sft(tmp_path / "run", artifacts)
    run_sft(ctx)
    given = json.loads(standin.read_text())
    assert given["program"] == "finetune"
    assert [row["messages"] for row in given["rows"]] == tuning.echoes(
        0, 8
    )  # the row that spells </s> is left out, and counted
    assert ctx.stats["removed"] == {"at the end, fills no batch": 2, "spells a control token": 1}
    assert (ctx.stats["rows"], ctx.stats["steps"]) == (8, 4)
    assert given["options"]["reduce_loss"] == "sum"
    assert given["deepspeed"]["gradient_clipping"] == 0.0
    assert [(m["step"], m["loss_sum"], m["tokens_per_second"]) for m in ctx.metrics][:2] == [
        (1, 100.0, 1001.0),
        (2, 50.0, 1002.0),
    ]
    assert len(ctx.metrics) == 4
    parent = load_file(artifacts["parent"][0].path / "model.safetensors")
    child = load_file(ctx.output("model") / "model.safetensors")
    for name, tensor in parent.items():
        assert torch.equal(child[name], (tensor + 0.5).bfloat16().float())
    assert ctx.facets["model"]["vocab_size"] == tuning.VOCABULARY
    assert {p.suffix for p in ctx.output("model").iterdir()} <= {
        ".safetensors",
        ".json",
        ".jinja",
        ".md",
        ".jsonl",
    }  # no pickle
    assert "| engine | open-instruct |" in (ctx.output("model") / "README.md").read_text()
    assert ctx.stats["before_answer_loss"] != ctx.stats["after_answer_loss"]


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_what_an_engine_gets_is_prepared_for_it(tmp_path: Path, dropout: float) -> None:
    """Field by field: no dropout of whoever trained the parent, no cache, the weights' type, tokens named, nothing
    added around a text.
    """
    from transformers import AutoConfig, AutoTokenizer

    parent = Path(tuning.parent(tmp_path, model_loading.chat_template.TULU).path)
    own = json.loads((parent / "config.json").read_text())
    spoiled = {
        **own,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.1,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
    }
    (parent / "config.json").write_text(json.dumps(spoiled))
    tokenizer = json.loads((parent / "tokenizer.json").read_text())
    begins = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }
    begins |= {
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (parent / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": begins}))
    assert AutoTokenizer.from_pretrained(parent)("what").input_ids[0] == 1

    folder = tmp_path / "prepared"
    checkpoint_conversion.prepare_parent(parent, folder, dropout)
    config = json.loads((folder / "config.json").read_text())
    changed = {
        "attention_dropout": dropout,
        "hidden_dropout": dropout,
        "use_cache": False,
        "torch_dtype": "float32",
        "dtype": "float32",
    }
    assert config == {**own, **changed}
    assert AutoConfig.from_pretrained(folder).attention_dropout == dropout
    found = AutoTokenizer.from_pretrained(folder)
    assert (found.pad_token, found.bos_token, found.eos_token, found.unk_token) == ("<unk>", "<s>", "</s>", "<unk>")
    assert (found.pad_token_id, len(found)) == (
        0,
        tuning.VOCABULARY,
    )  # without padding engines add a token, and a row to the embeddings
    assert found("what").input_ids == AutoTokenizer.from_pretrained(parent)("what").input_ids[1:]
    assert found.chat_template == model_loading.chat_template.TULU
    assert {path.name for path in folder.iterdir()} == {path.name for path in parent.iterdir()}
    assert (folder / "model.safetensors").samefile(parent / "model.safetensors")


def test_a_parents_dropout_reaches_no_training_here(tmp_path: Path) -> None:
    """TRL calls `train()` on what `load_model` gives."""
    parent = Path(tuning.parent(tmp_path).path)
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    for dropout in (0.0, 0.2):
        model: Any = model_loading.load_model(parent, torch.device("cpu"), dropout=dropout)
        assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {dropout}
    model = model_loading.load_model(parent, torch.device("cpu")).train()
    ids = torch.arange(3, 23)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def dpo(
    root: Path, parent: LocalArtifact, artifacts: Inputs, stop_after: int | None = None, **changes: Any
) -> LocalContext[DpoConfig]:
    inputs = {"parent": [parent], "preferences": artifacts["preferences"], "heldout": artifacts["heldout_pairs"]}
    return LocalContext(root, DpoConfig(**{**SMALL, "beta": 5.0, **changes}), inputs, stop_after=stop_after)


def test_dpo_gives_pairs(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    ctx = dpo(tmp_path / "run", tuning.parent(tmp_path, template=model_loading.chat_template.TULU), artifacts)
    run_dpo(ctx)
    given = json.loads(standin.read_text())
    assert given["program"] == "dpo_tune_cache"
    assert given["rows"][0]["chosen"] == [user("what 0"), assistant("it is 9")]
    assert (given["options"]["dpo_loss_type"], given["options"]["dpo_beta"]) == ("dpo_norm", 5.0)
    found = ctx.checkpoints.latest()
    assert found is not None
    assert {p.name for p in found[1].iterdir()} == {
        "child",
        "trained.json",
    }  # the model, and nothing in the middle of training
    assert (given["config"]["use_cache"], given["config"]["attention_dropout"]) == (False, 0.0)
    assert [m["loss"] for m in ctx.metrics] == [100.0, 50.0]


def test_fewer_rows_than_a_batch_are_one_line(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            "test: 10 rows are less than one batch of 16, and engine 'open-instruct' takes whole ones: lower "
            "global_batch_size"
        ),
    ):
        run_sft(sft(tmp_path / "run", artifacts, global_batch_size=16))


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4]), (3, [1, 3, 4]), (10, [1, 4])])
def test_the_first_the_last_and_each_so_many_steps_are_metrics(
    tmp_path: Path, artifacts: Inputs, standin: Path, every: int, steps: list[int]
) -> None:
    ctx = sft(tmp_path / "run", artifacts, log_every=every)
    run_sft(ctx)
    assert (
        json.loads(standin.read_text())["options"]["logging_steps"] == 1
    )  # upstream's own mean is wrong where an epoch ends
    assert [(m["step"], m["loss_sum"]) for m in ctx.metrics] == [(step, 100 / step) for step in steps]


def gone(path: Path) -> bool:
    """Whether the processes named in a file have ended."""
    limit = time.monotonic() + HANG
    while time.monotonic() < limit:
        alive = [
            p
            for p in path.read_text().split()
            if Path(f"/proc/{p}/stat").exists() and "Z" not in Path(f"/proc/{p}/stat").read_text().split()[2]
        ]
        if not alive:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("mode", ["wait", "stubborn"])
def test_a_stop_ends_all_its_processes_and_the_next_run_goes_on_from_the_last_checkpoint(
    tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("STANDIN", mode)
    monkeypatch.setattr(process.run, "__kwdefaults__", {**(process.run.__kwdefaults__ or {}), "grace": 1.0})
    with pytest.raises(Preempted, match="stopped on request"):
        run_sft(
            sft(tmp_path / "run", artifacts, stop_after=4, checkpoint_every=1)
        )  # three steps, and the line that says it waits
    assert gone(tmp_path / "pids")
    found = LocalContext(tmp_path / "run", SftConfig()).checkpoints.latest()
    assert found is not None
    assert found[0] == 3
    assert (found[1] / "step_3" / "pytorch_model" / "states.pt").read_text() == "states of step 3"
    monkeypatch.setenv("STANDIN", "ok")
    (tmp_path / "run" / "scratch" / "open-instruct").rename(tmp_path / "old")  # a new attempt has a new scratch folder
    again = sft(tmp_path / "run", artifacts)
    run_sft(again)
    assert json.loads(standin.read_text())["resumed"] == 3
    assert [m["step"] for m in again.metrics] == [4]


def test_dpo_goes_on_with_the_reference_of_its_parent(
    tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tuning.parent(tmp_path, template=model_loading.chat_template.TULU)
    monkeypatch.setenv("STANDIN", "wait")
    with pytest.raises(Preempted):
        run_dpo(dpo(tmp_path / "run", parent, artifacts, stop_after=4, checkpoint_every=2, epochs=2))
    (tmp_path / "run" / "scratch" / "open-instruct").rename(tmp_path / "old")
    monkeypatch.setenv("STANDIN", "ok")
    again = dpo(tmp_path / "run", parent, artifacts, epochs=2)
    run_dpo(again)
    record = json.loads(standin.read_text())
    assert (record["resumed"], record["reference"]) == (2, ["rank_0.pt"])
    assert [m["step"] for m in again.metrics] == [3, 4]


def test_a_checkpoint_of_other_gpus_is_one_line(
    tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "wait")
    with pytest.raises(Preempted):
        run_sft(sft(tmp_path / "run", artifacts, stop_after=4, checkpoint_every=1))
    (tmp_path / "run" / "scratch" / "open-instruct").rename(tmp_path / "old")
    again = sft(tmp_path / "run", artifacts)
    again.nproc_per_node = 2
    with pytest.raises(
        ConfigError,
        match=(
            r"test: its checkpoint of step 3 is DeepSpeed's of 1 GPUs, this attempt has 2: set"
            r" resources\.test\.gpus = 1"
        ),
    ):
        run_sft(again)


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        (
            "oom",
            MemoryError,
            r"open-instruct: \[rank0\]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        ("crash", process.EngineError, "open-instruct ended with status 1: RuntimeError: NCCL error: unhandled"),
        ("nan", ConfigError, "the loss is nan at step 2: training diverged; lower learning_rate"),
        ("fewer", process.EngineError, "open-instruct says Num examples = 7, where 8 were given"),
    ],
)
def test_each_failure_has_its_class_and_its_line(
    tmp_path: Path,
    artifacts: Inputs,
    standin: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setenv("STANDIN", mode)
    ctx = sft(tmp_path / "run", artifacts)
    with pytest.raises(error, match=message):
        run_sft(ctx)
    assert not (tmp_path / "run" / "out").exists()  # nothing half made
    if mode == "nan":
        assert gone(tmp_path / "pids") if (tmp_path / "pids").exists() else True


def test_an_engine_that_is_not_here_is_one_line(
    tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loading, "prepare", lambda ctx: (model_loading.quiet(), torch.device("cpu"))[1])
    monkeypatch.delenv("MOXIN_OPEN_INSTRUCT_PYTHON", raising=False)
    with pytest.raises(
        ConfigError,
        match=(
            r"test\.engine = 'open-instruct' is not installed where this runs \(MOXIN_OPEN_INSTRUCT_PYTHON is not set\)"
        ),
    ):
        run_sft(sft(tmp_path, artifacts))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SftConfig, {"label_smoothing": 0.1}, "has no label smoothing in SFT: set label_smoothing = 0.0"),
        (
            SftConfig,
            {"label_smoothing": 0.0, "precision": "fp32"},
            "loads and trains in bf16: set precision = 'bf16' .it is 'fp32'.",
        ),
        (SftConfig, {"label_smoothing": 0.0, "device": "cpu"}, "needs GPUs"),
        (SftConfig, {"label_smoothing": 0.0, "beta2": 0.95}, "always uses PyTorch's AdamW defaults: set beta2 = 0.999"),
        (
            SftConfig,
            {"label_smoothing": 0.0, "micro_batch_size": 3},
            "global_batch_size = 128 is no multiple of micro_batch_size = 3",
        ),
        (DpoConfig, {"turns": "last"}, "set turns = 'all'"),
    ],
)
def test_what_the_engine_cannot_honour_is_refused_with_the_plan(
    config: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**{**RECIPE, **changes})


def test_a_batch_that_its_gpus_cannot_share_is_refused_with_the_plan() -> None:
    config = SftConfig(**RECIPE, label_smoothing=0.0)
    Sft.check_resources("sft_tulu", config, Resources(gpus=8))
    with pytest.raises(
        ConfigError,
        match=r"^sft_tulu\.global_batch_size = 128 is no multiple of micro_batch_size x GPUs = 1 x 3: change",
    ):
        Sft.check_resources("sft_tulu", config, Resources(gpus=3))


def test_the_engine_is_part_of_the_key() -> None:
    one = SftConfig(label_smoothing=0.0)
    other = SftConfig(**{**RECIPE, "grad_clip": 0.0}, label_smoothing=0.0)
    assert one.identity() | {"engine": "open-instruct"} == other.identity()


def test_an_engine_dies_with_a_stage_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL gives the stage no time for anything: the guard sees the pipe close."""
    code = (
        "import sys, types, pathlib\n"
        "from stages.lib.engines import process\n"
        "ctx = types.SimpleNamespace(scratch=sys.argv[1], stopping=False)\n"
        "command = ['sh', '-c', 'sleep 300 & echo $$ $! > pids.part && mv pids.part pids; wait']\n"
        "process.run(ctx, 'x', command, env=process.environment(pathlib.Path(sys.argv[1])), on_line=print, grace=0.5)\n"
    )
    stage = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    limit = time.monotonic() + HANG
    while not (tmp_path / "pids").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    stage.kill()
    stage.wait()
    assert gone(tmp_path / "pids")
