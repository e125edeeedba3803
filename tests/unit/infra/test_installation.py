"""`make setup` and `make lock`: what installs, and where it gets it from."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.limits import HANG
from tests.support.paths import ROOT

LISTING = """\
:env:.cert='/etc/mirror.pem'
:env:.find-links='/wheels /more'
global.cert='/etc/other.pem'
global.extra-index-url='\\nhttps://a.example.org/simple\\nhttps://b.example.org/simple'
global.index-url='https://mirror.example.org/simple'
install.trusted-host='mirror.example.org'
"""


@pytest.fixture
def installer() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "containers" / "embedded" / "install.py"))


def test_uv_is_told_what_pip_is_configured_to_use(installer: dict[str, Any]) -> None:
    told = {
        "UV_DEFAULT_INDEX": "https://mirror.example.org/simple",
        "UV_INDEX": "https://a.example.org/simple https://b.example.org/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INSECURE_HOST": "mirror.example.org",
        "SSL_CERT_FILE": "/etc/mirror.pem",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert installer["uv_environment"](LISTING, {}) == told
    assert installer["uv_environment"](LISTING, {"UV_DEFAULT_INDEX": "mine", "PATH": "/bin"}) == {
        **told,
        "UV_DEFAULT_INDEX": "mine",
    }
    assert installer["uv_environment"]("", {"UV_INDEX": "mine"}) == {}


def test_a_machine_without_a_compiler_is_told_what_is_built_from_source(
    installer: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: "x86_64-linux-gnu-gcc -pthread")
    monkeypatch.setenv("PATH", str(tmp_path))
    installer["announce"](False)
    assert "no C compiler here: pycosat is built from source" in capfd.readouterr().out
    (tmp_path / "x86_64-linux-gnu-gcc").touch(0o755)
    installer["announce"](False)
    assert "compiler" not in capfd.readouterr().out


def test_pip_installs_what_uv_could_not(
    installer: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexit 2\n", encoding="utf-8")
    uv.chmod(0o755)
    installer["install"].__globals__["PIP"][:] = [sys.executable, "-c", "import sys; print('pip', *sys.argv[1:])"]
    installer["install"](str(uv), "-r", "a.lock")
    lines = capfd.readouterr().out.splitlines()
    assert lines == ["uv could not install this: pip tries, which takes longer", "pip install -r a.lock"]
    installer["install"](None, "-r", "a.lock")
    assert capfd.readouterr().out.splitlines() == ["pip install -r a.lock"]


def test_locks_are_made_anew_without_an_installation_from_the_old_ones(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name, time in ((".venv/bin/uv", 1), (".venv/.ready", 1), ("pyproject.toml", 2)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
    (tmp_path / "containers" / "embedded").mkdir(parents=True)
    for name in ("cuda.lock", "embedded/install.py"):
        (tmp_path / "containers" / name).touch()

    def planned(target: str) -> str:
        command = ["make", "--no-print-directory", "--dry-run", target, "UPGRADE=ray"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test`
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=HANG
        ).stdout

    assert planned("lock").splitlines() == [".venv/bin/python containers/lock.py ray"]
    assert "install.py" in planned("setup")
