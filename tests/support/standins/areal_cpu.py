"""AReaL 1.0.4 on a machine without GPUs: its trainer, scheduler, workers and FSDP engine are real, a small server
stands in for SGLang.

areal_cpu.py .../run_areal.py FOLDER     in the place of run_areal.py: float32 and SDPA, workers that start the small
server areal_cpu.py worker OPTIONS...           AReaL's worker, repaired as in programs/areal_worker.py areal_cpu.py
serve --model-path .. --host .. --port ..
"""

from __future__ import annotations

import json
import shlex
import sys
import threading
from argparse import ArgumentParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ME = Path(__file__).resolve()


def run(folder: Path) -> None:
    """Change what a CPU cannot do in the settings, and run the program on them."""
    path = folder / "config.yaml"
    config = json.loads(path.read_text())
    worker = f"python {shlex.quote(str(ME))} worker"
    for name in ("actor", "ref", "rollout"):
        for spec in (config[name] or {}).get("scheduling_spec", ()):
            spec["cmd"] = worker
    for name in ("actor", "ref"):
        if config[name]:
            config[name] |= {"dtype": "float32", "attn_impl": "sdpa"}
    path.write_text(json.dumps(config))
    from areal.utils import pkg_version  # type: ignore[import-not-found]

    pkg_version.is_version_greater_or_equal = lambda name, version: True  # asked of sglang, which is not installed
    from stages.lib.engines.programs import run_areal

    run_areal.main(folder)


def worker() -> None:
    """The rollout's worker starts a server by AReaL's command for SGLang: here by ours."""
    from areal.api.cli_args import SGLangConfig  # type: ignore[import-not-found]
    from areal.infra.rpc import rpc_server  # type: ignore[import-not-found]

    from stages.lib.engines.programs import areal_worker

    def command(args: dict[str, Any]) -> list[str]:
        return [
            sys.executable,
            str(ME),
            "serve",
            "--model-path",
            args["model_path"],
            "--host",
            args["host"],
            "--port",
            str(args["port"]),
        ]

    SGLangConfig.build_cmd_from_args = staticmethod(command)
    areal_worker.repair()
    rpc_server.main()


class Model:
    """Answers one request at a time."""

    def __init__(self, path: str) -> None:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._torch, self._lock = torch, threading.Lock()
        self.load(path)

    def load(self, path: str) -> None:
        """Weights of a Hugging Face folder."""
        from transformers import AutoModelForCausalLM

        with self._lock:
            self._model = AutoModelForCausalLM.from_pretrained(path, dtype=self._torch.float32).eval()

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """SGLang's answer to /generate with `return_logprob`."""
        torch, params = self._torch, request["sampling_params"]
        ids = torch.tensor([request["input_ids"]])
        with self._lock, torch.no_grad():
            out: Any = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=params["temperature"],
                top_p=params["top_p"],
                top_k=0,
                max_new_tokens=params["max_new_tokens"],
                eos_token_id=params["stop_token_ids"],
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = out.sequences[0, ids.shape[1] :]
        scores = (
            torch.log_softmax(torch.stack(out.logits, 1)[0].float() / params["temperature"], -1)
            .gather(-1, new[:, None])
            .squeeze(-1)
        )
        tokens = new.tolist()
        reason = "stop" if tokens[-1] in params["stop_token_ids"] else "length"
        drawn = [[score, token, None] for score, token in zip(scores.tolist(), tokens, strict=True)]
        return {"meta_info": {"finish_reason": {"type": reason}, "output_token_logprobs": drawn}}


def serve(path: str, host: str, port: int) -> None:
    """The endpoints that AReaL uses with `weight_update_mode = "disk"`."""
    model = Model(path)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            self._answer({"ok": self.path == "/health"})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            if self.path == "/generate":
                self._answer(model.generate(request))
            elif self.path == "/update_weights_from_disk":
                model.load(request["model_path"])
                self._answer({"success": True})
            elif self.path in ("/pause_generation", "/continue_generation"):
                self._answer({"success": True})
            else:
                self.send_error(404)

        def _answer(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer((host, port), Handler).serve_forever()


if __name__ == "__main__":
    sys.path.insert(0, str(ME.parents[3]))
    if sys.argv[1] == "worker":
        del sys.argv[1]
        worker()
    elif sys.argv[1] == "serve":
        parser = ArgumentParser()
        parser.add_argument("--model-path")
        parser.add_argument("--host")
        parser.add_argument("--port", type=int)
        given = parser.parse_args(sys.argv[2:])
        serve(given.model_path, given.host, given.port)
    else:
        from stages.lib.engines.programs.run_areal import guarded

        guarded(run, Path(sys.argv[2]))
