"""The bounds of the fast tier hold: a test that steps over one fails, and says where it belongs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import HANG
from tests.support.paths import ROOT

CASES = {
    "def test_x(ledger):\n    pass\n": "tests/unit has no object store",
    "import subprocess\n\ndef test_x():\n    subprocess.run(['weed', 'version'])\n": "starts weed",
    "import subprocess, sys\n\ndef test_x():\n    subprocess.run([sys.executable, '-m', 'torch.distributed.run'])\n": (
        "starts torch.distributed.run"
    ),
    "import socket\n\ndef test_x():\n    try:\n        socket.create_connection(('192.0.2.1', 9), 0.1)\n"
    "    except BaseException:\n        pass\n": "connects to 192.0.2.1",
    "def test_x():\n    import transformers\n": "imports transformers: mark it slow",
    "import lm_eval\n\ndef test_x():\n    pass\n": "imports lm_eval: inside a test that is marked slow",
}


@pytest.mark.slow  # a pytest of its own
def test_what_belongs_elsewhere_fails_in_the_fast_tier(tmp_path: Path) -> None:
    """Each case in a folder beside this tier's own conftest.py, as if it lay in tests/unit."""
    folder = tmp_path / "tests" / "unit"
    folder.mkdir(parents=True)
    for source in ("tests/conftest.py", "tests/unit/conftest.py"):
        (tmp_path / source).write_text((ROOT / source).read_text(encoding="utf-8"), encoding="utf-8")
    for number, text in enumerate(CASES):
        (folder / f"test_case_{number}.py").write_text(text, encoding="utf-8")
    for library in ("lm_eval", "transformers"):  # found before the real ones
        (folder / f"{library}.py").touch()
    (folder / "test_within.py").write_text("def test_x():\n    pass\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(folder)]
    command.append("--continue-on-collection-errors")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
    for number, said in enumerate(CASES.values()):
        assert said in done.stdout, f"case {number}: {done.stdout[-3000:]}"
    last = done.stdout.splitlines()[-1]
    assert f"{len(CASES)} errors" in last, done.stdout[-3000:]
    assert "test_within" not in done.stdout


def test_what_make_starts_may_keep_compiled_modules() -> None:
    """Images set PYTHONDONTWRITEBYTECODE: every process of the tests then compiles Kubernetes' client anew."""
    printed = subprocess.run(
        ["make", "--no-print-directory", "--eval=show: ; @env", "show"],
        cwd=ROOT, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "PATH=" in printed
    assert "PYTHONDONTWRITEBYTECODE" not in printed


@pytest.mark.parametrize("target", ["test", "test-fast"])
def test_the_makefile_has_both_tiers(target: str) -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(f"{target}: ") for line in lines)


def test_the_fast_tier_leaves_out_what_takes_seconds_and_the_whole_suite_does_not() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    (fast,) = [line for line in lines if "tests/unit tests/contract" in line]
    assert "not slow" in fast
    assert "--hypothesis-profile fast" in fast
    (whole,) = [line for line in lines if "--no-loadscope-reorder" in line]
    assert "slow" not in whole
    assert "--hypothesis-profile" not in whole
