"""What an engine needs of the machine or image that it runs in, looked at before the first byte is staged, and by
`moxin images verify`.

    python -m stages.core.selfcheck verl [--gpu]        # in an image, or here: one line for each thing that is missing

Engines make kernels when they run: Triton with a C compiler and Python's headers, DeepSpeed, vLLM and SGLang with nvcc
besides. A machine without a GPU is no fault of an image: the driver is looked at with `--gpu` alone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.errors import ConfigError
from stages.core.interpreters import variable

IMPORT_SECONDS = 600.0
"""vLLM takes half a minute to import on a quick disk: this is against a hang alone."""


@dataclass(frozen=True)
class Engine:
    """An engine that has a Python of its own (containers/<engine>)."""

    modules: tuple[str, ...]
    """What its programs import first."""
    stages: tuple[str, ...]
    compiles: bool = True
    """Whether it makes kernels when it runs: then it needs a C compiler, Python's headers, and CUDA's compiler and
    headers.
    """


ENGINES = {
    "open-instruct": Engine(("deepspeed", "accelerate.commands.launch", "flash_attn", "open_instruct"), ("sft", "dpo")),
    "verl": Engine(("verl.trainer.main_ppo", "verl.model_merger", "vllm", "flash_attn"), ("grpo",)),
    "areal": Engine(("areal", "sglang", "flash_attn"), ("grpo",)),
    "colossalai": Engine(("colossalai", "torch"), ("pretrain",), compiles=False),
}


def lacking(engine: str, gpu: bool = False) -> list[str]:
    """What an engine lacks here, one line each; nothing is lacking: empty. gpu: whether a GPU must be there."""
    name, needs = variable(engine), ENGINES[engine]
    python = os.environ.get(name, "")
    if not os.access(python, os.X_OK):
        state = f"= {python!r} is not an executable file" if python else "is not set"
        return [f"{name} {state}: {engine} is not installed here (containers/{engine})"]
    missing: list[str] = []
    if needs.compiles:
        if not _compiler():
            missing.append(
                "no C compiler (cc, gcc or clang; or name one in CC): Triton makes its kernels with it when they"
                " first run"
            )
        missing += _cuda_home()
    missing += _asked(python, needs.modules, needs.compiles)
    return missing + (driver() if gpu else [])


def _compiler() -> str | None:
    named = os.environ.get("CC", "").split()
    return next(filter(None, map(shutil.which, [*named[:1], "cc", "gcc", "clang"])), None)


def _cuda_home() -> list[str]:
    """CUDA's compiler and headers, as PyTorch looks for them (torch.utils.cpp_extension): CUDA_HOME, CUDA_PATH, nvcc on
    the path, /usr/local/cuda.
    """
    nvcc = shutil.which("nvcc")
    home = (
        os.environ.get("CUDA_HOME")
        or os.environ.get("CUDA_PATH")
        or (str(Path(nvcc).parent.parent) if nvcc else "/usr/local/cuda")
    )
    if not Path(home).is_dir():
        return [
            "CUDA_HOME is not set and there is no nvcc: DeepSpeed refuses to be imported, vLLM and SGLang cannot make"
            " kernels"
        ]
    parts = (("bin/nvcc", "CUDA's compiler"), ("include/cuda_runtime.h", "CUDA's headers"))
    return [f"CUDA_HOME = '{home}' has no {part} ({what})" for part, what in parts if not (Path(home) / part).exists()]


_PROBE = """
import importlib, os, sys, sysconfig
if sys.argv.pop(1) == "True" and not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
    print("lacking: no Python.h (Debian: python3-dev): Triton compiles against it")
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        said = (str(error).strip().splitlines() or [""])[0]
        print(f"lacking: {name} cannot be imported ({type(error).__name__}: {said[:200]})")
print("lacking-end")
"""


def _asked(python: str, modules: tuple[str, ...], headers: bool) -> list[str]:
    """What an engine's own Python says of its headers and imports."""
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, str(headers), *modules],
            capture_output=True,
            text=True,
            timeout=IMPORT_SECONDS,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"{python} cannot be asked ({type(error).__name__})"]
    lines = done.stdout.splitlines()
    missing = [line.removeprefix("lacking: ") for line in lines if line.startswith("lacking: ")]
    if "lacking-end" not in lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        missing.append(f"importing {', '.join(modules)} ended its Python with status {done.returncode} ({last[:200]})")
    return missing


def driver() -> list[str]:
    """Why no GPU can be used, told apart: no driver, a driver for a newer libc, one that does not start, no device.
    Empty: there is one.
    """
    try:
        cuda: Any = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        if "GLIBC" in str(error):
            return [f"the NVIDIA driver's library needs a newer libc than this image has ({error})"]
        return ["no NVIDIA driver here (libcuda.so.1): was the container started with GPUs?"]
    if status := int(cuda.cuInit(0)):
        return [f"the NVIDIA driver does not start (cuInit: {_CUDA.get(status, 'error')}, {status})"]
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return (
        []
        if count.value
        else ["the NVIDIA driver shows no GPU: CUDA_VISIBLE_DEVICES, or how the container was started"]
    )


_CUDA = {
    34: "a stub library stands in the driver's place",
    100: "no GPU is visible",
    101: "no such GPU",
    802: "the system is not ready: Fabric Manager, on machines with NVSwitch",
    803: "the driver is older than its library: they do not fit",
    804: "the driver is too old for the forward compatibility of this image",
}
"""Of `CUresult`, cuda.h."""


def require(node: str, config: Any) -> None:
    """Raise ConfigError, with all that is missing, where an attempt on GPUs could not even begin."""
    engine = getattr(config, "engine", "")
    if getattr(config, "device", "") != "cuda" or engine not in ENGINES:
        return
    if missing := lacking(engine, gpu=True):
        raise ConfigError(f"{node}.engine = '{engine}' cannot run here: {'; '.join(missing)}")


def main(arguments: list[str]) -> int:
    """Print what is missing, a line each; the exit status."""
    missing = lacking(arguments[0], gpu="--gpu" in arguments)
    print("\n".join(missing) or "ok")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
