"""open-instruct's own programs on the CPU, through the stages: its trainer, accelerate, DeepSpeed's ZeRO-3 on gloo,
transformers 4.50.

Its code is on no package registry. Give it as MOXIN_TEST_OPEN_INSTRUCT_SOURCE: a checkout of
github.com/allenai/open-instruct at commit d208aa371976a09152f61991951e981573e7582f, or any git directory that has the
commit. A C++ compiler is needed (DeepSpeed builds one operator).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.core.context import LocalArtifact
from stages.core.errors import Preempted
from stages.core.testing import LocalContext
from stages.dpo.pairs import SIDES, encode_pairs
from stages.dpo.run import run as run_dpo
from stages.dpo.spec import DpoConfig
from stages.lib.engines import checkpoint_conversion, open_instruct
from stages.lib.finetuning import model_loading
from stages.lib.finetuning.encoding import encode_conversations
from stages.lib.formats import chat_template
from stages.lib.formats.examples import assistant, read_preferences, user
from stages.sft.run import run as run_sft
from stages.sft.spec import SftConfig
from tests.support import engines, standins, tuning

SOURCE = "MOXIN_TEST_OPEN_INSTRUCT_SOURCE"
MISSING = (
    f"{SOURCE} is not set, and open-instruct is on no package registry: git clone"
    f" https://github.com/allenai/open-instruct, git checkout {open_instruct.COMMIT}, {SOURCE}=<that folder> make"
    " test-upstream"
)
DIGESTS = {
    "finetune.py": "45cd860bf1212a24817b7d669e359afcbac7286250918a1527faff45f7f7f2de",
    "dpo_tune_cache.py": "2bb6dee2f266e10663d2c648809f38b37d8ae9845818b8c3350d11b0274212b1",
}
STANDIN = Path(standins.__file__).parent / "open_instruct_cpu.py"
SMALL: dict[str, Any] = {
    "engine": "open-instruct",
    "device": "cuda",
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "epochs": 2,
    "max_length": 100,
    "max_new_tokens": 8,
    "samples": 1,
    "log_every": 1,
    "checkpoint_every": 2,
    "learning_rate": 3e-3,
    "threads": 1,
}
pytestmark = [
    pytest.mark.upstream,
    pytest.mark.timeout(3600),
]  # an environment is installed, DeepSpeed compiles, six runs: minutes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the package `open_instruct` of the commit."""
    if not (given := os.environ.get(SOURCE)):
        pytest.skip(MISSING)
    folder = Path(given)
    if not (folder / "open_instruct" / "finetune.py").is_file():
        words = ["git", "-C", given, "archive", open_instruct.COMMIT, "open_instruct"]
        folder = tmp_path_factory.mktemp("source")
        with tarfile.open(fileobj=io.BytesIO(subprocess.run(words, check=True, capture_output=True).stdout)) as archive:
            archive.extractall(folder, filter="data")
    for name, digest in DIGESTS.items():
        found = hashlib.sha256((folder / "open_instruct" / name).read_bytes()).hexdigest()
        assert found == digest, f"{SOURCE}: {name} is not that of commit {open_instruct.COMMIT}"
    return folder


@pytest.fixture(scope="module")
def python(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert source.is_dir()  # without it nothing is installed
    return engines.interpreter(tmp_path_factory.mktemp("open-instruct") / "venv", "open_instruct_cpu")


@pytest.fixture
def environment(source: Path, python: Path, tmp_path: Path) -> dict[str, str]:
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",
        "PYTHONPATH": str(source),
    }
    return {
        **quiet,
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "TORCH_EXTENSIONS_DIR": str(python.parent.parent / "built"),
    }


def ask(python: Path, environment: dict[str, str], script: str, *words: str) -> Any:
    """What upstream's own code says: the script's last line, JSON."""
    done = subprocess.run(
        [str(python), "-c", script, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_its_own_parser_takes_the_arguments(
    python: Path, environment: dict[str, str], tmp_path: Path, stage: str
) -> None:
    config: Any = SftConfig(**SMALL, label_smoothing=0.0) if stage == "sft" else DpoConfig(**SMALL, beta=5.0)
    recipe = open_instruct.sft_recipe(config) if stage == "sft" else open_instruct.dpo_recipe(config)
    script = (
        "import sys, json, importlib\n"
        "m = importlib.import_module('open_instruct.' + sys.argv.pop(1))\n"
        "args, tc = m.ArgumentParserPlus((m.FlatArguments, m.TokenizerConfig)).parse_args_into_dataclasses()\n"
        "print(json.dumps({**vars(tc), **vars(args)}, default=str))\n"
    )
    found = ask(
        python, environment, script, recipe.program, *open_instruct.arguments(config, recipe, tmp_path / "a b", 2)
    )
    wanted = {
        "model_name_or_path": str(tmp_path / "a b" / "parent"),
        "dataset_mixer_list": [str(tmp_path / "a b" / "train.jsonl"), "1.0"],
        "gradient_accumulation_steps": 2,
        "learning_rate": 3e-3,
        "warmup_ratio": config.warmup_ratio,
        "checkpointing_steps": "2",
        "keep_last_n_checkpoints": 1,
        "push_to_hub": False,
        "with_tracking": False,
        "chat_template_name": "tulu",
        "trust_remote_code": False,
    }
    assert {name: found[name] for name in wanted} == wanted


def test_its_tokens_and_labels_are_ours(python: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Row by row, over several turns, cut at max_seq_length: what is counted, measured and planned here is what is
    trained there.
    """
    parent = Path(tuning.parent(tmp_path, chat_template.TULU).path)
    checkpoint_conversion.prepare_parent(parent, tmp_path / "prepared")
    rows = [[user("what a"), assistant("it is b"), user("what c 1"), assistant("aaa 2" * n)] for n in (1, 9)]
    pairs = tuning.preferences(tmp_path / "pairs", [([user("what")], "it is 9" * n, "no") for n in (1, 9)])
    script = (
        "import sys, json\nimport open_instruct.dataset_transformation as d\ntokenizer ="
        " d.TokenizerConfig(tokenizer_name_or_path=sys.argv[1], chat_template_name='tulu').tokenizer\nrows, pairs ="
        " json.loads(sys.argv[2])\nsft = [d.sft_tulu_tokenize_and_truncate_v1({'messages': r}, tokenizer, 40) for r in"
        " rows]\ndpo = [d.preference_tulu_tokenize_and_truncate_v1(p, tokenizer, 40) for p in pairs]\nplain = lambda x:"
        " {k: v.tolist() if hasattr(v, 'tolist') else v for k, v in x.items() if 'ids' in k or 'labels' in"
        " k}\nprint(json.dumps([[plain(r) for r in sft], [plain(p) for p in dpo], len(tokenizer),"
        " tokenizer.pad_token_id]))\n"
    )
    both = [{side: [*p["prompt"], *p[side]] for side in SIDES} for p in read_preferences(pairs.path)]
    sft, dpo, size, pad = ask(python, environment, script, str(tmp_path / "prepared"), json.dumps([rows, both]))
    tokenizer = model_loading.load_tokenizer(parent, chat_template.TULU)
    ours = encode_conversations(tokenizer, rows, 40).rows
    assert [(list(r["input_ids"]), list(r["labels"])) for r in ours] == [(r["input_ids"], r["labels"]) for r in sft]
    own = encode_pairs(tokenizer, read_preferences(pairs.path), DpoConfig(max_length=40, max_new_tokens=8), None)
    for side in SIDES:
        assert [(r["input_ids"], r["labels"]) for r in own.labelled(side)] == [
            (p[f"{side}_input_ids"], p[f"{side}_labels"]) for p in dpo
        ]
    assert (size, pad) == (tuning.VOCABULARY, 0)  # it added no token


def test_what_it_gets_passes_the_check_that_the_parent_fails(
    python: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """transformers 4.50 under flash attention, with a row padded on the right, as DPO's reference is computed."""
    parent = Path(tuning.parent(tmp_path, chat_template.TULU).path)
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps({**config, "use_cache": True}))
    checkpoint_conversion.prepare_parent(parent, tmp_path / "prepared")
    script = (
        "import sys, json, torch\nfrom transformers import AutoConfig, MistralModel\ndef check(folder):\n    config ="
        " AutoConfig.from_pretrained(folder)\n    model = MistralModel(config)\n    model.config._attn_implementation ="
        " 'flash_attention_2'\n    model.layers = torch.nn.ModuleList()  # flash attention itself needs a GPU; the"
        " check comes before the layers\n    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1],"
        " [1, 1, 0]])\n    try:\n        model(input_ids=ids, attention_mask=mask)\n    except ValueError as error:\n  "
        "      return str(error)\n    return 'passed'\nprint(json.dumps([check(folder) for folder in sys.argv[1:]]))\n"
    )
    refused, passed = ask(python, environment, script, str(parent), str(tmp_path / "prepared"))
    assert "padding_side='right'" in refused
    assert passed == "passed"


def test_its_reference_function_needs_the_main_block(python: Path, environment: dict[str, str]) -> None:
    """Why programs are run as `__main__`: imported, it ends in a NameError."""
    script = (
        "import json\nfrom types import SimpleNamespace\nimport open_instruct.dpo_tune_cache as m\nloader ="
        " type('Loader', (list,), {'set_epoch': lambda self, epoch: None})([{}])\ntry:\n   "
        " m.get_cache_ref_logprobs(None, loader, SimpleNamespace(is_local_main_process=False), True, None, None,"
        " range(1), None)\nexcept NameError as error:\n    print(json.dumps(str(error)))\n"
    )
    assert ask(python, environment, script) == "name 'args' is not defined"


@dataclasses.dataclass
class Case:
    """A stage on a number of processes."""

    run: Any
    config: Any
    inputs: dict[str, list[LocalArtifact]]
    ranks: int

    def context(self, root: Path, kind: type[LocalContext[Any]]) -> LocalContext[Any]:
        """Of an attempt."""
        return kind(root, self.config, self.inputs, nproc_per_node=self.ranks)


def case(stage: str, root: Path) -> Case:
    """Twelve steps in two epochs."""
    if stage == "sft":
        inputs = {
            "conversations": [tuning.conversations(root / "train", tuning.echoes(0, 50))]
        }  # two of them fill no batch
        inputs |= {
            "parent": [tuning.parent(root)],
            "heldout": [tuning.conversations(root / "heldout", tuning.echoes(100, 4))],
        }
        return Case(run_sft, SftConfig(**SMALL, label_smoothing=0.0), inputs, 1)
    pairs = [([user(f"what {n}")], "it is 9", "no") for n in range(50)]
    inputs = {
        "preferences": [tuning.preferences(root / "pairs", pairs)],
        "heldout": [tuning.preferences(root / "heldout", pairs[:4])],
    }
    inputs["parent"] = [tuning.parent(root, chat_template.TULU)]
    return Case(run_dpo, DpoConfig(**{**SMALL, "learning_rate": 3e-4}, beta=5.0), inputs, 2)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_it_trains_stops_and_goes_on_as_if_it_had_not(
    python: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    here = case(stage, tmp_path)
    variables = {**environment, "LOCAL_SIZE": str(here.ranks)}  # DeepSpeed would count NUMA nodes
    program = engines.wrapper(
        tmp_path / "python", python, variables, {"*accelerate.commands.launch*": f'{STANDIN} "$@"'}
    )
    monkeypatch.setenv("MOXIN_OPEN_INSTRUCT_PYTHON", str(program))
    monkeypatch.setattr(model_loading, "prepare", lambda ctx: (model_loading.quiet(), torch.device("cpu"))[1])
    whole = here.context(tmp_path / "whole", LocalContext)
    here.run(whole)
    first = here.context(tmp_path / "broken", tuning.Stopping)
    first.after = 4  # type: ignore[attr-defined]
    with pytest.raises(Preempted):
        here.run(first)
    found = first.checkpoints.latest()
    assert found is not None
    assert 4 <= found[0] < 12
    (tmp_path / "broken" / "scratch" / "open-instruct").rename(
        tmp_path / "old"
    )  # another attempt has its checkpoint, and nothing else
    second = here.context(tmp_path / "broken", LocalContext)
    here.run(second)
    name = "loss_sum" if stage == "sft" else "loss"
    losses = [row[name] for row in whole.metrics]
    print(stage, "losses", losses, "went on after step", found[0])
    assert [row["step"] for row in whole.metrics] == list(range(1, 13))
    assert sum(losses[-3:]) < sum(losses[:3])

    def told(rows: list[dict[str, float]]) -> list[tuple[float, ...]]:
        return [(row["step"], row[name], row["learning_rate"]) for row in rows]

    assert told(second.metrics) == told(whole.metrics)[found[0] :]
    assert told(first.metrics) == told(whole.metrics)[: len(first.metrics)]
    weights = [load_file(ctx.output("model") / "model.safetensors") for ctx in (whole, second)]
    parent = load_file(here.inputs["parent"][0].path / "model.safetensors")
    assert weights[0].keys() == weights[1].keys() == parent.keys()
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    assert not all(torch.equal(tensor.bfloat16().float(), weights[0][key]) for key, tensor in parent.items())
    assert whole.stats["removed"] == {"at the end, fills no batch": 2}
