"""A machine that reaches nothing but itself does everything: services, a run of real stages, pages, report."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.browser import need_browser
from tests.support.limits import DAG
from tests.support.paths import ROOT

pytestmark = pytest.mark.e2e


def test_a_network_namespace_without_a_way_out_is_enough(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here: unshare --net needs util-linux and root")
    need_browser()  # the program within could not skip
    command = [unshare, "--net", sys.executable, "-m", "tests.support.no_way_out", str(tmp_path)]
    program = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = program.communicate(timeout=DAG)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        raise
    assert program.returncode == 0, output
    assert (tmp_path / "run.png").stat().st_size > 10_000
