"""What an engine lacks is said before anything is staged: compiler, CUDA, headers, imports, driver, each by its own
line.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import image_checks
from stages.core import selfcheck
from stages.core.errors import ConfigError
from stages.grpo.spec import GrpoConfig


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine whose Python is this one, with two modules for its programs, a compiler and CUDA's; remove one and it
    is told.
    """
    cuda, tools = tmp_path / "cuda", tmp_path / "tools"
    for path in (cuda / "bin" / "nvcc", cuda / "include" / "cuda_runtime.h", tools / "cc"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (tmp_path / "good_program.py").write_text("")
    (tmp_path / "bad_program.py").write_text("raise RuntimeError('CUDA_HOME does not exist')\n")
    (tmp_path / "dead_program.py").write_text("import os\nos._exit(3)\n")
    include = tmp_path / "include"
    include.mkdir()
    (include / "Python.h").touch()
    (tmp_path / "sitecustomize.py").write_text(
        "import sysconfig\nold = sysconfig.get_paths\nsysconfig.get_paths = lambda *a: old(*a) | {'include':"
        f" {str(include)!r}}}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("CUDA_HOME", str(cuda))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("MOXIN_VERL_PYTHON", sys.executable)
    monkeypatch.setitem(selfcheck.ENGINES, "verl", selfcheck.Engine(("good_program",), ("grpo",)))
    return tmp_path


def test_nothing_is_lacking_where_all_is_there(machine: Path) -> None:
    assert selfcheck.lacking("verl") == []


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("tools/cc", "no C compiler"),
        ("cuda/bin/nvcc", "has no bin/nvcc (CUDA's compiler)"),
        ("cuda/include/cuda_runtime.h", "has no include/cuda_runtime.h (CUDA's headers)"),
        ("cuda", "CUDA_HOME is not set and there is no nvcc"),
        ("include/Python.h", "no Python.h"),
    ],
)
def test_each_thing_that_is_missing_is_named(machine: Path, gone: str, said: str) -> None:
    path = machine / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (line,) = selfcheck.lacking("verl")
    assert said in line


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("bad_program", "bad_program cannot be imported (RuntimeError: CUDA_HOME does not exist)"),
        (
            "no_such_program",
            "no_such_program cannot be imported (ModuleNotFoundError: No module named 'no_such_program')",
        ),
        ("dead_program", "importing dead_program ended its Python with status 3 (no message)"),
    ],
)
def test_a_program_that_cannot_be_imported_is_one_line(
    machine: Path, monkeypatch: pytest.MonkeyPatch, module: str, said: str
) -> None:
    monkeypatch.setitem(selfcheck.ENGINES, "verl", selfcheck.Engine((module,), ("grpo",)))
    assert selfcheck.lacking("verl") == [said]


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (OSError("libcuda.so.1: cannot open shared object file"), "no NVIDIA driver here"),
        (OSError("/lib/libc.so.6: version `GLIBC_2.38' not found"), "needs a newer libc"),
        (SimpleNamespace(cuInit=lambda flags: 803), "the driver is older than its library"),
        (SimpleNamespace(cuInit=lambda flags: 100), "no GPU is visible"),
        (SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetCount=lambda count: 0), "shows no GPU"),
    ],
)
def test_why_no_gpu_can_be_used_is_told_apart(monkeypatch: pytest.MonkeyPatch, library: Any, said: str) -> None:
    def load(name: str) -> Any:
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(selfcheck.ctypes, "CDLL", load)
    (line,) = selfcheck.driver()
    assert said in line


def test_an_attempt_is_refused_with_all_that_is_missing_and_only_on_gpus(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "tools" / "cc").unlink()
    monkeypatch.setattr(selfcheck, "driver", lambda: ["no driver"])
    config = GrpoConfig(engine="verl", device="cuda", micro_batch_size=1)
    with pytest.raises(
        ConfigError, match=r"^grpo_deepscaler\.engine = 'verl' cannot run here: no C compiler .*; no driver$"
    ):
        selfcheck.require("grpo_deepscaler", config)
    selfcheck.require("grpo_deepscaler", GrpoConfig(engine="trl", device="cuda"))
    assert selfcheck.lacking("verl") != ["no driver"], "an image is made on a machine without a GPU"


def test_engines_are_looked_for_here(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOXIN_AREAL_PYTHON", raising=False)
    found = image_checks.verify_engines(None, ["verl", "areal"], {})
    assert [check.line() for check in found] == [
        "verl (this machine): ok",
        "areal (nowhere): MOXIN_AREAL_PYTHON is not set, and no image here has it (containers/areal/README.md)",
    ]


def test_every_engine_has_a_folder_and_every_folder_an_engine() -> None:
    folders = {path.parent.name for path in image_checks.environments.FOLDER.glob("*/Dockerfile")} - {"control"}
    assert folders == set(selfcheck.ENGINES)
    assert os.path.isdir(image_checks.environments.FOLDER)


def test_an_image_of_an_engine_that_compiles_has_what_it_compiles_with() -> None:
    for name, engine in selfcheck.ENGINES.items():
        last = (
            (image_checks.environments.FOLDER / name / "Dockerfile")
            .read_text(encoding="utf-8")
            .rpartition("\nFROM ")[2]
        )
        assert "RUN sh /build/toolchain.sh" in last, name
        assert ("CUDA_HOME=" in last) == engine.compiles, name
        assert last.index("USER root") < last.index("toolchain.sh") < last.index("USER 65532:65532"), name
