"""Rollout `hf_cpu` of verl: one Ray actor that answers with transformers' generate, and takes the trainer's weights
after each step.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import ray  # type: ignore[import-not-found]
import torch
from transformers import AutoModelForCausalLM
from verl.workers.rollout.base import BaseRollout  # type: ignore[import-not-found]
from verl.workers.rollout.replica import RolloutReplica, TokenOutput  # type: ignore[import-not-found]

GATHER_SECONDS = 0.05
"""Requests that come within this time are answered in one batch."""


def server_name(rank: int) -> str:
    """The Ray actor's name."""
    return f"hf_cpu_server_{rank}"


class Server:
    """Answers requests in batches."""

    def __init__(self, path: str, longest: int) -> None:
        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._longest, self._steps = longest, 0
        self._waiting: list[tuple[list[int], dict[str, Any], asyncio.Future[TokenOutput]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ready(self) -> bool:
        return True

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **rest: Any
    ) -> TokenOutput:
        """One response, with the log-probabilities that it was drawn with."""
        future: asyncio.Future[TokenOutput] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(prompt_ids), dict(sampling_params), future))
        if self._task is None:
            self._task = asyncio.ensure_future(self._answer())
        return await future

    async def _answer(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        requests, self._waiting, self._task = self._waiting, [], None
        pad, width = self._model.config.pad_token_id or 0, max(len(ids) for ids, _, _ in requests)
        ids = torch.full((len(requests), width), pad)
        mask = torch.zeros_like(ids)
        for row, (prompt, _, _) in enumerate(requests):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        temperature = float(requests[0][1].get("temperature", 1.0))
        with torch.no_grad():
            out: Any = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self._longest,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = out.sequences[:, width:]
        scores = (
            torch.log_softmax(torch.stack(out.logits, 1).float() / temperature, -1)
            .gather(-1, new[..., None])
            .squeeze(-1)
        )
        end = self._model.generation_config.eos_token_id
        for row, (_, _, future) in enumerate(requests):
            tokens = new[row].tolist()
            length = tokens.index(end) + 1 if end in tokens else len(tokens)
            future.set_result(
                TokenOutput(
                    token_ids=tokens[:length],
                    log_probs=scores[row, :length].tolist(),
                    stop_reason="completed" if end in tokens else "length",
                    extra_fields={"global_steps": self._steps},
                )
            )

    async def load(self, state: dict[str, torch.Tensor], steps: int | None) -> None:
        """The trainer's weights."""
        self._model.load_state_dict(state)
        self._steps = self._steps if steps is None else steps

    async def set_global_steps(self, steps: int) -> None:
        self._steps = steps

    async def abort_all_requests(self, **rest: Any) -> dict[str, Any]:
        return {"aborted_count": 0, "request_ids": []}

    async def idle(self, *args: Any, **rest: Any) -> None:
        """There is no memory to give back, and nothing to profile."""

    wake_up = sleep = resume_generation = clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = (
        stop_profile
    ) = idle


class Replica(RolloutReplica):
    """Starts the server."""

    async def launch_servers(self) -> None:
        options = {"name": server_name(self.replica_rank), "max_concurrency": 1000, "num_cpus": 0}
        path = getattr(self.model_config, "local_path", None) or self.model_config.path
        server = ray.remote(Server).options(**options).remote(path, self.config.response_length)
        await server.ready.remote()
        self.servers, self._server_handle, self._server_address = [server], server, f"hf_cpu:{self.replica_rank}"


class Adapter(BaseRollout):
    """In the trainer's process: hands weights to the server."""

    def __init__(
        self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(config, model_config, device_mesh)
        self._rank = int(os.environ.get("RANK", "0")) if replica_rank == -1 else replica_rank

    async def resume(self, tags: list[str]) -> None:
        """Nothing was given back."""

    async def release(self) -> None:
        """Nothing to give back."""

    async def update_weights(
        self, weights: Any, wire_format: str = "named_tensors", global_steps: int | None = None, **rest: Any
    ) -> None:
        if wire_format != "named_tensors":
            raise ValueError(f"hf_cpu takes named tensors, not {wire_format}")
        state: dict[str, torch.Tensor] = {}
        if hasattr(weights, "__aiter__"):
            async for name, tensor in weights:
                state[name] = tensor.detach().float().clone()
        else:
            state = {name: tensor.detach().float().clone() for name, tensor in weights}
        await ray.get_actor(server_name(self._rank)).load.remote(state, global_steps)
