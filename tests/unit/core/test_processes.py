"""No process that holds credentials leaves a picture of its memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from tests.support.limits import HANG
from tests.support.paths import ROOT

ABORT = "import os; from stages.core.processes import no_core_files; {}os.abort()"


def aborted(what: str, limit: int) -> int:
    """The status of a process that aborts, as the kernel gives it. limit: of core files, as it begins; at most what
    this process may set, which is less where a test before it ran a command in it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)

    def begin() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))

    pid = subprocess.Popen([sys.executable, "-c", ABORT.format(what)], cwd=ROOT, preexec_fn=begin)
    return os.waitpid(pid.pid, 0)[1]


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_a_process_that_is_aborted_leaves_no_core_file(limit: int) -> None:
    status = aborted("no_core_files(); ", limit)
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)


def test_the_limit_is_one_that_nobody_raises_again_and_that_stops_a_pipe_too() -> None:
    code = (
        "import resource, subprocess, sys; from stages.core.processes import no_core_files; no_core_files();"
        "subprocess.run([sys.executable, '-c', 'import resource; print(resource.getrlimit(resource.RLIMIT_CORE))'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=True
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    assert done.stdout.strip() == ("(0, 0)" if hard == 0 else "(1, 1)"), (soft, hard)
