"""The runtime as a process: exit statuses, the event stream, and every way of being stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.settings import Settings
from stages.core.errors import ExitClass
from stages.core.ledger import Ledger
from stages.core.messages import StageRequest
from stages.core.processes import process_alive, process_identity
from tests.support.limits import HANG
from tests.support.paths import ROOT
from tests.support.probe_pipeline import events_of, python_with_probes, request_of, train_request, wait_for

"""A stage that does not stop fails its test instead of holding up all of them."""
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Start the runtime on a request, with its standard input held open, as the launcher does."""
    running: list[subprocess.Popen[bytes]] = []
    python = python_with_probes(tmp_path)

    def begin(request: StageRequest, **more: str) -> subprocess.Popen[bytes]:
        file = tmp_path / f"request-{len(running)}.json"
        file.write_text(request.model_dump_json())
        env = {
            "PATH": os.environ["PATH"],
            **settings.store_environment(),
            "MOXIN_SCRATCH": str(tmp_path / "scratch"),
            **more,
        }
        process = subprocess.Popen(
            [python, "-m", "stages.core.runtime", str(file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True,
        )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def finish(process: subprocess.Popen[bytes]) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, events and standard error of a process that ends by itself (its standard input stays open)."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, errors = process.stdout.read(), process.stderr.read()
    return process.wait(timeout=HANG), events_of(out), errors.decode()


def until_waiting(process: subprocess.Popen[bytes]) -> None:
    """Read events until the stage says that it waits."""
    assert process.stdout is not None
    for line in process.stdout:
        if b"waiting" in line:
            return
    raise AssertionError("the stage ended without waiting")


def test_success_is_status_0_and_nothing_but_events_on_standard_output(
    ledger: Ledger, start: Start, tmp_path: Path
) -> None:
    code, events, errors = finish(start(request_of(ledger.store.address, ledger, act="print")))
    assert code == 0
    assert [e["event"] for e in events] == ["begun", "metric", "metric", "done"]
    assert events[-1]["exit"] == "ok"
    assert events[-1]["key"] == "a" * 64
    assert "a line that a library prints" in errors
    assert "a line of a child process" in errors
    assert ledger.manifest("a" * 64) is not None
    outcome = ledger.outcome("a" * 64, 1)
    assert outcome is not None
    assert outcome.exit_class == "ok"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_every_failure_has_its_status_and_one_line(ledger: Ledger, start: Start, tmp_path: Path) -> None:
    """All at once, in processes beside each other."""
    expected = {
        "config": (64, "asked for config"),
        "input": (65, "asked for input"),
        "enospc": (69, f"no space left on the disk that holds {tmp_path / 'scratch'} (mounted at "),
        "memory": (71, "out of memory: asked for it"),
        "bug": (1, "KeyError: 'asked for a bug' (run.py:"),
    }
    running = {
        act: start(request_of(ledger.store.address, ledger, f"{number:064x}", act=act))
        for number, act in enumerate(expected)
    }
    for act, (code, message) in expected.items():
        found, events, errors = finish(running[act])
        assert (act, found) == (act, code)
        assert [e["event"] for e in events] == ["begun", "done"]
        assert events[1]["message"].startswith(message)
        assert ("Traceback" in errors) == (act == "bug"), "a traceback is for bugs, never for a user's mistake"
        outcome = ledger.outcome(f"{list(expected).index(act):064x}", 1)
        assert outcome is not None
        assert (outcome.exit_class, outcome.message) == (events[1]["exit"], events[1]["message"]), (
            "not in the log alone"
        )
    assert list(ledger.store.list("manifests/")) == []
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("how", ["SIGTERM", "closed input"])
def test_a_stage_that_is_asked_to_stop_does(ledger: Ledger, start: Start, tmp_path: Path, how: str) -> None:
    process = start(request_of(ledger.store.address, ledger, act="wait"))
    until_waiting(process)
    if how == "closed input":  # the launcher died
        assert process.stdin is not None
        process.stdin.close()
    else:
        process.send_signal(getattr(signal, how))
    code, events, errors = finish(process)
    assert code == 75
    assert events == [{"event": "done", "exit": "preempted", "message": "stopped on request"}]
    assert "Traceback" not in errors
    assert ledger.manifest("a" * 64) is None
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_stage_that_will_not_stop_is_cut_off(ledger: Ledger, start: Start) -> None:
    process = start(request_of(ledger.store.address, ledger, act="stubborn"), MOXIN_GRACE_SECONDS="0.3")
    until_waiting(process)
    process.send_signal(signal.SIGTERM)
    code, events, errors = finish(process)
    assert code == 75
    assert [e["message"] for e in events] == ["not now", "waiting"]
    assert "did not stop within its grace: cut off" in errors


def ticks(process: subprocess.Popen[bytes]) -> int:
    """Processor time, in hundredths of a second (utime in proc(5))."""
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_a_stage_deep_in_a_library_does_not_outlive_its_launcher(ledger: Ledger, start: Start) -> None:
    """Fitting a classifier in C++ takes hours at scale, and handles no signal before it comes back."""
    process = start(request_of(ledger.store.address, ledger, act="deaf"), MOXIN_GRACE_SECONDS="0.3")
    until_waiting(process)
    before = ticks(process)
    wait_for(lambda: ticks(process) > before + 20, "it to be inside the library")
    assert process.stdin is not None
    process.stdin.close()
    code, _, errors = finish(process)
    assert code == 75
    assert "did not stop within its grace: cut off" in errors


def test_a_stage_with_checkpoints_saves_one_more_before_it_stops(ledger: Ledger, start: Start) -> None:
    process = start(train_request(ledger, "a" * 64, steps=1000, step_seconds=0.02, save_every=1000))
    assert process.stdout is not None
    for line in process.stdout:
        if b'"step": 3' in line:
            break
    process.send_signal(signal.SIGTERM)
    code, events, _ = finish(process)
    assert code == 75
    steps = ledger.checkpoint_steps("a" * 64)
    assert len(steps) == 1
    assert steps[0] >= 3
    assert events[-1]["message"] == f"stopped at step {steps[0]}"


def test_after_kill_9_the_next_attempt_goes_on_from_the_checkpoint(ledger: Ledger, start: Start) -> None:
    request = train_request(ledger, "a" * 64, steps=8, step_seconds=0.05)
    first = start(request)
    wait_for(lambda: ledger.checkpoint_steps("a" * 64), "a checkpoint")
    first.send_signal(signal.SIGKILL)
    assert first.wait(timeout=HANG) == -9
    assert ledger.manifest("a" * 64) is None
    ledger.release(request.lease)
    code, events, _ = finish(start(train_request(ledger, "a" * 64, steps=8)))
    assert code == 0
    begins = [e["message"] for e in events if e["event"] == "log" and e["message"].startswith("begins at step")]
    found = ledger.manifest("a" * 64)
    assert found is not None
    assert found[0].attempt.resumed_from in (2, 4, 6)
    assert begins == [f"begins at step {found[0].attempt.resumed_from}"]
    metrics = ledger.store.get(str(found[0].metrics_object))
    assert metrics is not None
    assert len(metrics[0].splitlines()) == 8, "every step once"


def test_wrong_credentials_are_one_line_and_no_traceback(ledger: Ledger, start: Start) -> None:
    request = request_of(ledger.store.address, ledger)
    code, events, errors = finish(start(request, AWS_ACCESS_KEY_ID="AKIANOBODY", AWS_SECRET_ACCESS_KEY="a-secret"))
    assert code == 64
    assert "refuses access" in events[-1]["message"]
    assert "a-secret" not in str(events) + errors
    assert "Traceback" not in errors


def test_a_store_that_is_down_is_an_infrastructure_failure(ledger: Ledger, start: Start) -> None:
    dead = ledger.store.address.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    code, events, errors = finish(start(request_of(dead, ledger), MOXIN_STORE_PATIENCE="1"))
    assert code == 69
    assert "http://127.0.0.1:9 cannot be reached" in events[-1]["message"]
    assert "Traceback" not in errors


def test_the_real_entry_point_knows_the_real_stages_only(settings: Settings, ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(request_of(ledger.store.address, ledger).model_dump_json())
    env = {"PATH": os.environ["PATH"], **settings.store_environment()}
    done = subprocess.run(
        [sys.executable, "-m", "stages.core.runtime", str(file)], env=env, cwd=ROOT, capture_output=True, check=False
    )  # fmt: skip
    assert done.returncode == 64
    assert "this image has no stage 'probe_source'" in events_of(done.stdout)[0]["message"]


AS_IF_DONE = """
runtime.find_stage = runtime.engine_python = lambda *given: None
runtime.run = lambda *given: SimpleNamespace(key="k", attempt=SimpleNamespace(wall_seconds=1))
"""


@pytest.mark.parametrize(("ends", "exit_class"), [(AS_IF_DONE, ExitClass.OK), ("", ExitClass.CONFIG)])
def test_a_signal_while_the_end_is_told_changes_nothing_of_it(
    settings: Settings, ledger: Ledger, tmp_path: Path, ends: str, exit_class: ExitClass
) -> None:
    """A launcher may ask a stage to stop that has just ended: an exception of it there was told as a bug."""
    request, file = request_of(ledger.store.address, ledger), tmp_path / "request.json"
    file.write_text(request.model_dump_json())
    program = f"""
import os, signal, sys
from types import SimpleNamespace
from stages.core import runtime
told = runtime.leave_outcome
runtime.leave_outcome = lambda *end: (os.kill(os.getpid(), signal.SIGTERM), told(*end))
{ends}
sys.exit(runtime.main([{str(file)!r}]))
"""
    env = {"PATH": os.environ["PATH"], **settings.store_environment(), "MOXIN_SCRATCH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, check=False, timeout=HANG
    )
    assert done.returncode == exit_class.code, done.stderr.decode()
    outcome = ledger.outcome(request.key, request.lease.epoch)
    assert outcome is not None
    assert outcome.exit_class is exit_class


def test_a_stage_is_cut_off_though_nobody_reads_what_it_says() -> None:
    """Its launcher has died, and with it the reader of its standard error."""
    code = (
        "import os; from stages.core.stopping import cut_off; read, write = os.pipe(); os.close(read);"
        " os.dup2(write, 2); cut_off(b'cut off')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL, check=False)
    assert ended.returncode == ExitClass.PREEMPTED.code


def test_what_a_stage_started_is_cut_off_whatever_other_processes_do_meanwhile() -> None:
    """One of them has a name that is no UTF-8 (the kernel cuts names after 15 bytes), one ends before its turn."""
    code = (
        "import subprocess; from stages.core import stopping; listed = stopping.group_members;"
        " open('/proc/self/comm', 'wb').write(b'\\xc3');"
        " print(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid, flush=True);"
        " stopping.group_members = lambda: [1 << 30, *listed()]; stopping.cut_off(b'cut off')"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True, check=False)
    assert ended.returncode == ExitClass.PREEMPTED.code
    child = process_identity(int(ended.stdout))
    wait_for(lambda: not process_alive(child), "the end of what it had started")
