"""verl 0.9.1 on a machine without GPUs, through its own extension points; its code stays as it is.

    VERL_USE_EXTERNAL_MODULES=tests.support.standins.verl_cpu VERL_PLATFORM=cpu VERL_ENGINE_DEVICE=cuda

verl has no CPU platform, and samples with vLLM, SGLang or TensorRT-LLM. Here: a platform `cpu` (gloo; Ray is told of
one virtual GPU, so that placement works as ever), a rollout `hf_cpu` that generates with transformers, and two repairs
of what takes a GPU for granted.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from verl.plugin.platform.platform_base import PlatformBase  # type: ignore[import-not-found]
from verl.plugin.platform.platform_manager import PlatformRegistry  # type: ignore[import-not-found]
from verl.workers.rollout import base, replica  # type: ignore[import-not-found]

ROLLOUT = "hf_cpu"


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a CPU has no use for."""


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


class CpuModule(types.ModuleType):
    """In the place of `torch.cuda`."""

    set_device = synchronize = empty_cache = ipc_collect = reset_peak_memory_stats = staticmethod(_nothing)
    set_per_process_memory_fraction = current_stream = staticmethod(_nothing)
    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = staticmethod(_zero)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> str:
        return "cpu"

    def mem_get_info(self, *args: Any) -> tuple[int, int]:
        return 1 << 33, 1 << 34

    def get_rng_state(self, *args: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *args: Any) -> None:
        torch.set_rng_state(state)

    def get_device_name(self, *args: Any) -> str:
        return "cpu"

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)


MODULE = CpuModule("moxin_cpu")


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """A CPU that counts as one GPU."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: MODULE)
    set_device = synchronize = set_allocator_settings = empty_cache = profiler_start = profiler_stop = _nothing
    cudart = get_collective_module = _nothing

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_resource_options(self, num_gpus: float) -> dict[str, Any]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {}


def _load_replica() -> Any:
    from tests.support.standins.verl_cpu_rollout import Replica

    return Replica


base._ROLLOUT_REGISTRY[(ROLLOUT, "async")] = "tests.support.standins.verl_cpu_rollout.Adapter"
replica.RolloutReplicaRegistry.register(ROLLOUT, _load_replica)

_init_process_group = dist.init_process_group


def _init_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
    """verl asks for `cpu:gloo,<device>:<backend>`: with the CPU as its device that names one device twice, which torch
    refuses.
    """
    _init_process_group("gloo" if backend and backend.startswith("cpu:gloo,cpu:") else backend, *args, **kwargs)


dist.init_process_group = _init_gloo
torch.Tensor.pin_memory = lambda self, *args, **kwargs: (
    self
)  # the reference's offloading policy pins memory for a copy to a GPU
