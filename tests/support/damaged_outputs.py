"""Files that come from outside or from other programs, for the tests of damaged bytes: web archives, chat data, results
of evaluation harnesses, logs of engines.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flows.launch.base import parse_event
from stages.ingest.spec import IngestConfig
from stages.ingest.warc import read_warc
from stages.lib.engines import open_instruct
from stages.lib.engines.areal import MARK, Areal
from stages.lib.engines.verl import Verl
from stages.lib.evaluation.harnesses import lmms_eval, olmes, opencompass, qwen25_math
from stages.lib.formats import examples
from stages.lib.formats.sources import RawFile
from tests.support.damaged_bytes import Reader
from tests.support.harness_results import recorded, suite
from tests.support.paths import DATA
from tests.support.raw_pages import page

CONVERSATION = [examples.user("What is 1 + 1?"), examples.assistant("2")]


def _archive(_: Path) -> bytes:
    return b"".join(page(number, size=4) for number in range(3))


def _pages(path: Path) -> object:
    return list(read_warc(RawFile(uri=path.name, format="warc", source="s"), path.parent, IngestConfig()))


def _chats(folder: Path) -> bytes:
    (folder / "chats").mkdir()
    with examples.ConversationWriter(folder / "chats") as writer:
        for _ in range(20):
            writer.add({"id": "1", "messages": CONVERSATION, "source": "s", "license": ""})
    return next((folder / "chats").glob("*.parquet")).read_bytes()


def _faults(path: Path) -> object:
    return [examples.conversation_fault(row) for row in examples.read_conversations(path.parent)]


def _harness(module: Any, version: str, task: dict[str, Any], file: str) -> Reader:
    """One file of a harness's results."""
    harness = module.__name__.rsplit(".", 1)[1].replace("_", "-")

    def read(path: Path) -> object:
        folder = recorded(path.parent, harness, version)
        (folder / file).write_bytes(path.read_bytes())
        return module.read(folder, suite(harness, version, task))

    return Reader(f"{harness}{Path(file).suffix}", lambda _: (DATA / "harnesses" / harness / file).read_bytes(), read)


LOG = "\n".join(
    (
        json.dumps({"event": "metric", "step": 3, "values": {"loss": 2.5}}),
        json.dumps({"event": "done", "exit": "ok", "message": ""}),
        "step:7 - actor/pg_loss:0.25 - actor/lr:1e-06 - critic/score/mean:np.float64(0.5)",
        "  Step: 12, LR: 1e-05, Loss: 1.25, TPS: 812.5",
        MARK + json.dumps({"step": 3, "stats": {"ppo_actor/update/loss": 0.5}}),
    )
)


def _follow(path: Path) -> object:
    """Every line to everybody who reads lines."""
    config = SimpleNamespace(global_batch_size=1, epochs=1, log_every=1)
    ctx: Any = SimpleNamespace(config=config, node="n", progress=lambda *_: None, metric=lambda *_, **__: None)
    tuning = open_instruct.Follower(ctx, "loss", 100)
    readers: tuple[Callable[[str], object], ...] = (parse_event, Verl().read, Areal(0.1).read, tuning)
    return [read(line) for line in path.read_text(errors="replace").splitlines() for read in readers]


OUTPUTS = (
    Reader("pages.warc", _archive, _pages),
    Reader("pages.warc.gz", lambda _: gzip.compress(_archive(_), mtime=0), _pages),
    Reader("conversations.parquet", _chats, _faults),
    _harness(lmms_eval, "0.7.3", {"task": "pope"}, "pope/20261129_160122_results.json"),
    _harness(olmes, "0.1.0", {"task": "gsm8k::tulu", "num_fewshot": 8}, "gsm8k__tulu/metrics-all.jsonl"),
    _harness(opencompass, "0.5.4", {"task": "piqa_ppl"}, "20261129_080458/results/model_hf/piqa.json"),
    _harness(qwen25_math, qwen25_math.COMMIT, {"task": "amc23", "chat_template": True},
             "amc23/test_mathstral_-1_seed0_t0.0_s0_e-1.jsonl"),
    Reader("engine.log", lambda _: LOG.encode(), _follow),
)  # fmt: skip
