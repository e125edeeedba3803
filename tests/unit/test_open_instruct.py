"""Engine open-instruct: its exact arguments, its log, its model, its resume, and every way it may end. The program is a stand-in."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stages.core.contracts import ConfigError, LocalArtifact, Preempted
from stages.core.testing import LocalContext
from stages.dpo.run import run as run_dpo
from stages.dpo.spec import DpoConfig
from stages.engines import exchange, openinstruct, process
from stages.engines.programs import run_open_instruct
from stages.finetuning import models
from stages.formats.examples import assistant, user
from stages.sft.run import run as run_sft
from stages.sft.spec import SftConfig
from tests import standins, tuning

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
Inputs = dict[str, list[LocalArtifact]]

#: Tülu 3's recipe (open-instruct docs/tulu3.md at the pinned commit): 8 GPUs take 1 x 16 x 8 where it had 1 x 2 x 64.
RECIPE = {"engine": "open-instruct", "device": "cuda", "devices": 8, "batch_size": 128, "micro_batch": 1, "seed": 123, "log_every": 1, "grad_clip": 1.0}
SMALL = {
    "engine": "open-instruct",
    "device": "cuda",
    "batch_size": 4,
    "micro_batch": 2,
    "max_length": 100,
    "answer_tokens": 8,
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
    """The engine's interpreter is the stand-in; this machine has a GPU as far as the stage is told. Returns its record's path."""
    monkeypatch.setenv("STANDIN_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for engines")
    return tuning.stand_in(tmp_path, monkeypatch, "open_instruct", Path(standins.__file__).parent / "open_instruct.py")


def sft(root: Path, inputs: Inputs, stop_after: int | None = None, **changes: Any) -> LocalContext[SftConfig]:
    config = SftConfig(**{**SMALL, "label_smoothing": 0.0, **changes})
    return LocalContext(root, config, {k: inputs[k] for k in ("parent", "conversations", "heldout")}, stop_after=stop_after)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_recipes_arguments_are_the_recorded_ones(stage: str) -> None:
    """Every option is one of upstream's at the pinned commit; the list is the recipe's, word for word."""
    if stage == "sft":
        config: Any = SftConfig(**RECIPE, label_smoothing=0.0)
        recipe = openinstruct.sft_recipe(config)
    else:
        config = DpoConfig(**RECIPE, recompute="full")
        recipe = openinstruct.dpo_recipe(config)
    words = openinstruct.arguments(config, recipe, Path("FOLDER"))
    assert words == json.loads((DATA / "open_instruct_commands.json").read_text())[stage]
    known = json.loads((DATA / "open_instruct_options.json").read_text())
    assert known["commit"] == openinstruct.COMMIT
    assert f"COMMIT={openinstruct.COMMIT}" in (ROOT / "containers" / "open-instruct" / "Dockerfile").read_text()
    assert {w[2:] for w in words if w.startswith("--")} <= known[recipe.program].keys() | known["tokenizer"].keys()


def test_accelerate_reads_its_file(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = tmp_path / "accelerate.json"
    path.write_text(json.dumps(openinstruct.accelerate_config(SftConfig(**RECIPE, label_smoothing=0.0), tmp_path / "deepspeed.json")))
    found: Any = load_config_from_file(str(path))
    assert (found.num_processes, found.num_machines, str(found.mixed_precision)) == (8, 1, "bf16")
    assert found.deepspeed_config["deepspeed_config_file"] == str(tmp_path / "deepspeed.json")


def test_sft_gives_upstream_its_data_and_takes_its_model(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    ctx = sft(tmp_path / "run", artifacts)
    run_sft(ctx)
    given = json.loads(standin.read_text())
    assert given["program"] == "finetune"
    assert [row["messages"] for row in given["rows"]] == tuning.echoes(0, 10)  # the row that spells </s> is left out, and counted
    assert ctx.stats["removed"] == {"spells a control token": 1}
    assert given["options"]["reduce_loss"] == "sum"
    assert given["deepspeed"]["gradient_clipping"] == 0.0
    assert [(m["step"], m["loss_sum"], m["tokens_per_second"]) for m in ctx.metrics][:2] == [(1, 100.0, 1001.0), (2, 50.0, 1002.0)]
    assert len(ctx.metrics) == 6  # 3 steps an epoch
    parent = load_file(artifacts["parent"][0].path / "model.safetensors")
    child = load_file(ctx.output("model") / "model.safetensors")
    for name, tensor in parent.items():
        assert torch.equal(child[name], (tensor + 0.5).bfloat16().float())
    assert ctx.facets["model"]["vocab_size"] == tuning.VOCABULARY
    assert {p.suffix for p in ctx.output("model").iterdir()} <= {".safetensors", ".json", ".jinja", ".md", ".jsonl"}  # no pickle
    assert "| engine | open-instruct |" in (ctx.output("model") / "README.md").read_text()
    assert ctx.stats["before_answer_loss"] != ctx.stats["after_answer_loss"]


def test_the_parent_that_upstream_sees_has_padding(tmp_path: Path, artifacts: Inputs) -> None:
    """open-instruct adds <pad>, and a row to the embeddings, to a tokenizer that has none."""
    from transformers import AutoTokenizer

    exchange.prepare_parent(Path(artifacts["parent"][0].path), tmp_path / "parent")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "parent")
    assert (tokenizer.pad_token, len(tokenizer)) == ("<unk>", tuning.VOCABULARY)


def test_dpo_gives_pairs_and_starts_over(tmp_path: Path, artifacts: Inputs, standin: Path) -> None:
    inputs = {"parent": artifacts["parent"], "preferences": artifacts["preferences"], "heldout": artifacts["heldout_pairs"]}
    inputs["parent"] = [tuning.parent(tmp_path, template=models.chat_template.TULU)]
    ctx = LocalContext(tmp_path / "run", DpoConfig(**{**SMALL, "beta": 5.0}), inputs)
    run_dpo(ctx)
    given = json.loads(standin.read_text())
    assert given["program"] == "dpo_tune_cache"
    assert given["rows"][0]["chosen"] == [user("what 0"), assistant("it is 9")]
    assert (given["options"]["dpo_loss_type"], given["options"]["dpo_beta"]) == ("dpo_norm", 5.0)
    assert "checkpointing_steps" not in given["options"]
    assert ctx.checkpoints.latest() is None
    assert [m["loss"] for m in ctx.metrics] == [100.0, 50.0]


def gone(path: Path) -> bool:
    """Whether the processes named in a file have ended."""
    limit = time.monotonic() + 5
    while time.monotonic() < limit:
        alive = [p for p in path.read_text().split() if Path(f"/proc/{p}/stat").exists() and "Z" not in Path(f"/proc/{p}/stat").read_text().split()[2]]
        if not alive:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("mode", ["wait", "stubborn"])
def test_a_stop_ends_all_its_processes_and_the_next_run_goes_on_between_epochs(
    tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("STANDIN", mode)
    monkeypatch.setattr(process.run, "__kwdefaults__", {**process.run.__kwdefaults__, "grace": 1.0})
    with pytest.raises(Preempted, match="stopped on request"):
        run_sft(sft(tmp_path / "run", artifacts, stop_after=4))  # three steps, and the line that says it waits
    assert gone(tmp_path / "pids")
    found = LocalContext(tmp_path / "run", SftConfig()).checkpoints.latest()
    assert found is not None
    assert found[0] == 1
    monkeypatch.setenv("STANDIN", "ok")
    (tmp_path / "run" / "scratch" / "open-instruct").rename(tmp_path / "old")  # a new attempt has a new scratch folder
    again = sft(tmp_path / "run", artifacts)
    run_sft(again)
    assert json.loads(standin.read_text())["resumed"] == 1
    assert [m["step"] for m in again.metrics] == [4, 5, 6]


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        ("oom", MemoryError, r"open-instruct: \[rank0\]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("crash", process.EngineError, "open-instruct ended with status 1: RuntimeError: NCCL error: unhandled"),
        ("nan", ConfigError, "the loss is nan at step 2: training diverged; lower learning_rate"),
    ],
)
def test_each_failure_has_its_class_and_its_line(
    tmp_path: Path, artifacts: Inputs, standin: Path, monkeypatch: pytest.MonkeyPatch, mode: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("STANDIN", mode)
    ctx = sft(tmp_path / "run", artifacts)
    with pytest.raises(error, match=message):
        run_sft(ctx)
    assert not (tmp_path / "run" / "out").exists()  # nothing half made
    if mode == "nan":
        assert gone(tmp_path / "pids") if (tmp_path / "pids").exists() else True


def test_an_engine_that_is_not_here_is_one_line(tmp_path: Path, artifacts: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "prepare", lambda ctx: (models.quiet(), torch.device("cpu"))[1])
    monkeypatch.delenv("MOXIN_OPEN_INSTRUCT_PYTHON", raising=False)
    with pytest.raises(ConfigError, match=r"test\.engine = 'open-instruct' is not installed where this runs \(MOXIN_OPEN_INSTRUCT_PYTHON is not set\)"):
        run_sft(sft(tmp_path, artifacts))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SftConfig, {"label_smoothing": 0.1}, "has no label smoothing in SFT: set label_smoothing = 0.0"),
        (SftConfig, {"label_smoothing": 0.0, "precision": "fp32"}, "loads and trains in bf16: set precision = 'bf16' .it is 'fp32'."),
        (SftConfig, {"label_smoothing": 0.0, "device": "cpu"}, "needs GPUs"),
        (SftConfig, {"label_smoothing": 0.0, "beta2": 0.95}, "always uses PyTorch's AdamW defaults: set beta2 = 0.999"),
        (SftConfig, {"label_smoothing": 0.0, "devices": 3}, "batch_size = 128 is no multiple of micro_batch x devices = 1 x 3"),
        (DpoConfig, {"turns": "last"}, "set turns = 'all'"),
        (SftConfig, {"engine": "trl"}, "engine 'trl' trains on one device: set devices = 1"),
    ],
)
def test_what_the_engine_cannot_honour_is_refused_with_the_plan(config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**{**RECIPE, **changes})


def test_the_engine_is_part_of_the_key_and_its_devices_are_not() -> None:
    one = SftConfig(label_smoothing=0.0)
    other = SftConfig(**{**RECIPE, "grad_clip": 0.0}, label_smoothing=0.0)
    assert one.identity() | {"engine": "open-instruct"} == other.identity()
    assert "devices" not in other.identity()


def test_the_programs_clock_names_one_folder_and_then_tells_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    program = types.ModuleType("open_instruct.finetune")

    class Parser:
        def __init__(self, types_: Any) -> None:
            seen.append(types_)

        def parse_args_into_dataclasses(self) -> tuple[list[str], str]:
            return sys.argv[1:], "tokenizer"

    def main(args: list[str], tokenizer: str) -> None:
        clock: Any = program.time  # type: ignore[attr-defined]
        seen.extend([args, tokenizer, int(clock.time()), clock.time()])

    program.__dict__.update(ArgumentParserPlus=Parser, FlatArguments="flat", TokenizerConfig="tokens", main=main)
    monkeypatch.setitem(sys.modules, "open_instruct", types.ModuleType("open_instruct"))
    monkeypatch.setitem(sys.modules, "open_instruct.finetune", program)
    monkeypatch.setattr(sys, "argv", ["run_open_instruct.py", "finetune", "--seed", "1"])
    importlib.reload(run_open_instruct).main()
    assert seen[:4] == [("flat", "tokens"), ["--seed", "1"], "tokenizer", 0]
    assert abs(seen[4] - time.time()) < 60


def test_an_engine_dies_with_a_stage_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL gives the stage no time for anything: the guard sees the pipe close."""
    code = (
        "import sys, types, pathlib\n"
        "from stages.engines import process\n"
        "ctx = types.SimpleNamespace(scratch=sys.argv[1], stopping=False)\n"
        "command = ['sh', '-c', 'sleep 300 & echo $$ $! > pids.part && mv pids.part pids; wait']\n"
        "process.run(ctx, 'x', command, env=process.environment(pathlib.Path(sys.argv[1])), on_line=print, grace=0.5)\n"
    )
    stage = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    limit = time.monotonic() + 30
    while not (tmp_path / "pids").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    stage.kill()
    stage.wait()
    assert gone(tmp_path / "pids")
