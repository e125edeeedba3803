"""The pool of verifier workers: right verdicts from anywhere, and no answer costs more than its limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.lib.verifier import Limits, Verdict, Verifier
from stages.lib.verifier.verifier_pool import _Answer
from tests.support.graded_answers import GOLDEN
from tests.support.limits import HANG
from tests.support.paths import ROOT

LIMITS = Limits(cpu_seconds=2, wall_seconds=HANG)
EQUIVALENT = [
    ("5", "5.0"),
    (r"\frac{1}{2}", "0.5"),
    ("x+1", "1+x"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("(1,2)", "(1, 2)"),
    (r"2\pi", r"\pi\cdot 2"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("1,000", "1000"),
    ("5", "6"),
    ("x+1", "x+2"),
    ("(1,2)", "(2,1)"),
    (r"\frac{1}{3}", "0.3"),
]
"""Answers on which math-verify and DeepScaleR's rule agree."""


def boxed(answer: str) -> str:
    return f"<think>\nso\n</think>\n\\boxed{{{answer}}}"


@pytest.fixture(scope="module")
def deepscaler() -> Iterator[Verifier]:
    with Verifier(workers=2) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def mathverify() -> Iterator[Verifier]:
    with Verifier(rule="math-verify", limits=LIMITS) as verifier:
        yield verifier


def test_golden_pairs_through_workers(deepscaler: Verifier) -> None:
    pairs = [(boxed(answer), reference) for answer, reference, _ in GOLDEN]
    assert [verdict.score for verdict in deepscaler.verify_many(pairs)] == [float(right) for *_, right in GOLDEN]
    assert deepscaler.counts["error"] == 0  # no worker lacks what the rule needs


def test_outcomes_say_what_was_wrong(deepscaler: Verifier) -> None:
    assert deepscaler.verify(boxed("4"), "4") == Verdict(1.0, "correct")
    assert deepscaler.verify(boxed("5"), "4") == Verdict(0.0, "wrong")
    assert deepscaler.verify("\\boxed{4}", "4").outcome == "no format"
    assert deepscaler.verify("<think>\\boxed{4}</think>", "4").outcome == "no format"
    assert deepscaler.verify(boxed("4" * 10**6), "4").outcome == "too long"
    assert deepscaler.verify(boxed("4"), "4" * 10**6).outcome == "too long"


def test_the_rules_agree_where_they_should_and_math_verify_is_itself(
    deepscaler: Verifier, mathverify: Verifier
) -> None:
    from math_verify import parse, verify

    pairs = [(boxed(answer), reference) for answer, reference in EQUIVALENT]
    ours = [v.score for v in mathverify.verify_many(pairs)]
    theirs = [
        float(verify(parse(f"\\boxed{{{reference}}}"), parse(f"\\boxed{{{answer}}}")))
        for answer, reference in EQUIVALENT
    ]
    assert ours == theirs
    assert [v.score for v in deepscaler.verify_many(pairs)] == theirs
    assert mathverify.counts["error"] == 0
    for answer, reference in (
        ("2/4", "1/2"),
        ("x+y+z", "z+y+x"),
        (r"\sqrt{16}", "4"),
    ):  # DeepScaleR is stricter by design
        assert (
            mathverify.verify(boxed(answer), reference).score,
            deepscaler.verify(boxed(answer), reference).score,
        ) == (1.0, 0.0)


def test_without_format_only_the_box_counts() -> None:
    with Verifier(limits=LIMITS, require_format=False) as verifier:
        assert verifier.verify("It is \\boxed{4}", "4").score == 1.0
        assert verifier.verify("<think>\\boxed{5}</think>\\boxed{4}", "4").score == 1.0


@pytest.mark.parametrize("text", ["100000000!", "(" * 200 + "1" + ")" * 200])
def test_an_answer_that_hangs_costs_its_limit_and_scores_nothing(mathverify: Verifier, text: str) -> None:
    """In a worker of math-verify, which evaluates: its own alarms are off here."""
    before = mathverify.counts["timeout"]
    outcome = mathverify.verify(boxed(text), "7").outcome
    assert outcome in ("timeout", "memory", "wrong", "error", "crashed")
    assert mathverify.counts["timeout"] - before == (outcome == "timeout")
    assert mathverify.verify(boxed(r"\frac{2}{4}"), "1/2").score == 1.0  # a new worker stands there


def test_the_answers_beside_a_hanging_one_keep_their_verdicts() -> None:
    with Verifier(rule="math-verify", limits=LIMITS) as verifier:
        pairs = [(boxed("2/4"), "1/2"), (boxed("9^{9^{9^9}}"), "7"), (boxed("3/6"), "1/2"), (boxed("1/3"), "1/2")]
        assert [v.outcome for v in verifier.verify_many(pairs)] == ["correct", "timeout", "correct", "wrong"]


WORKER = """
import os, socket, sys, time
from stages.lib.verifier import fork_server

def judge(what, value):
    if what == "memory":
        return bool(bytearray(int(value)))
    if what == "write":
        os.write(os.open(value, os.O_CREAT | os.O_WRONLY), b"x")
    if what == "spin":
        while True:
            pass
    return what == "environment" and len(os.environ) > 0 or what == value

fork_server.work(socket.socket(fileno=int(sys.argv[1])), judge, {"cpu_seconds": 1, "memory_bytes": 1 << 30})
"""


def test_the_kernel_bounds_a_worker(tmp_path: Path) -> None:
    """Memory, files, environment and processor of a worker whose judge does what no rule should."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT
        )
    with ours, ours.makefile("rb") as replies:

        def ask(what: str, value: str) -> bool | str:
            ours.sendall(json.dumps([what, value]).encode() + b"\n")
            return json.loads(replies.readline())

        assert ask("same", "same") is True
        assert ask("memory", str(100 << 20)) is True
        assert ask("memory", str(2 << 30)) == "memory"
        assert ask("write", str(tmp_path / "file")) == "error"
        assert ask("environment", "") is False
        ours.sendall(b'["spin", ""]\n')
        assert replies.readline() == b""
    assert process.wait(HANG) == -signal.SIGXCPU
    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() == b""


def test_neither_server_nor_worker_holds_a_credential_of_their_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel shows it: clearing `os.environ` leaves what a process was started with in its memory."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-key-of-the-store")
    monkeypatch.setenv("HF_TOKEN", "the-key-of-the-hub")
    with Verifier(limits=LIMITS) as verifier:
        assert verifier.verify(boxed("x+1"), "1+x").score == 1.0
        worker, server = verifier._idle.get(), verifier._server
        assert worker is not None
        assert server is not None
        for pid in (worker._pid, server._process.pid):
            held = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"PATH=" in held
            assert b"the-key-of" not in held
        verifier._idle.put(worker)


def test_text_that_would_run_is_not_run(deepscaler: Verifier, mathverify: Verifier, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for text in (f"__import__('os').system('touch {mark}')", f"open('{mark}','w')", f"(x:=open('{mark}','w'))"):
        for verifier in (deepscaler, mathverify):
            assert verifier.verify(boxed(text), "7").score == 0.0
            assert verifier.verify(boxed("7+0*x"), text).score == 0.0
    assert not mark.exists()


def test_a_worker_that_dies_is_counted_and_replaced(deepscaler: Verifier) -> None:
    with Verifier(limits=LIMITS) as verifier:
        assert verifier.verify(boxed("x+1"), "1+x").score == 1.0
        worker = verifier._idle.get()
        assert worker is not None
        os.kill(worker._pid, signal.SIGKILL)
        verifier._idle.put(worker)
        assert verifier.verify(boxed("x+2"), "2+x").outcome == "crashed"
        assert (
            verifier.verify(boxed("x+2"), "2+x").outcome == "correct"
        )  # not remembered: it was not the answer's fault
        assert verifier.counts["crashed"] == 1


def test_from_threads_asyncio_pickle_and_fork(deepscaler: Verifier) -> None:
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(deepscaler.verify(boxed(f"{n}x+1"), f"1+{n}x").score))
        for n in range(2, 12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1.0] * 10

    async def gather() -> list[Verdict]:
        return await asyncio.gather(*(deepscaler.averify(boxed(f"{n}y+1"), f"1+{n}y") for n in range(2, 8)))

    assert [v.score for v in asyncio.run(gather())] == [1.0] * 6
    with pickle.loads(pickle.dumps(deepscaler)) as copy:
        assert (copy.limits, copy.workers, copy.rule) == (deepscaler.limits, 2, "deepscaler")
        assert copy.verify(boxed("2y+3"), "3+2y").score == 1.0
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply(_verify_in_child, (id(deepscaler),)) == 1.0
    assert deepscaler.verify(boxed("5y+3"), "3+5y").score == 1.0


def _verify_in_child(_: int) -> float:
    with Verifier(limits=LIMITS) as verifier:
        return verifier.verify(boxed("2z+3"), "3+2z").score


def test_a_reference_is_tested_by_evaluation(mathverify: Verifier, deepscaler: Verifier) -> None:
    assert deepscaler.accepts([("5", "5"), ("2/4", "1/2"), ("5" * 1000, "5" * 1000), ("(1,2)", "(1, 2)")]) == [
        True,
        False,
        False,
        True,
    ]
    assert mathverify.accepts([(r"\frac{1}{2}", r"\frac{1}{2}"), ("", ""), ("x+1", "1+x")]) == [True, False, True]
    assert mathverify.accepts([]) == []


def test_the_answer_is_looked_at_before_a_worker_is_started() -> None:
    verifier = Verifier()
    assert verifier.verify("no box", "4").score == 0.0
    assert verifier.verify(boxed("4"), " 4 ").score == 1.0
    assert verifier._answer(boxed(" 4 ")) == _Answer("4")
    assert verifier._server is None


def test_workers_end_with_their_owner(tmp_path: Path) -> None:
    """Even when the owner is killed: nothing is left behind."""
    code = (
        "import os, time\nfrom stages.lib.verifier import Verifier\nv = Verifier()\n"
        "v.verify('</think>\\\\boxed{x+1}', '1+x')\n"
        "w = v._idle.get()\nprint(w._pid, v._server._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    pids = [int(part) for part in owner.stdout.readline().split()]
    assert len(pids) == 2
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline and any(_alive(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
