"""The process that workers are forked from: it has imported sympy once, so a new worker costs milliseconds.

    python -m stages.lib.verifier.fork_server RULE FD        (started by `stages.lib.verifier.verifier_pool`, never by
    hand)

FD is a Unix socket to the owner. The owner sends JSON lines {"do": "start", limits..} with a socket for the new worker
attached, or {"do": "stop", "pid": n, "grace": seconds}; the answer is {"pid": n}, or {"status": wait status}. Only this
process waits for its workers, so a number never names another process. When the owner is gone, however it went, the
workers are ended and so is this process.

A worker reads JSON lines [answer, reference] and writes one line each: true, false, "memory" or "error". The kernel
bounds its memory and its seconds of processor for each answer; it can write no file and start no process, and
neither it nor the server was given a credential.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

JUDGES = {
    "deepscaler": "stages.lib.verifier.deepscaler_rule:is_equal",
    "math-verify": "stages.lib.verifier.math_verify_rule:is_equal",
    "math-verify-strict": "stages.lib.verifier.math_verify_rule:is_equal_mathematics",
}
"""The function that decides by a rule."""
WARM = (
    (r"\frac{x}{2} + \sqrt{2}", r"\frac{x + 2\sqrt{2}}{2}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("(1, 2]", "[1, 2]"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    ("x = 5", "5"),
    (r"2\pi", "6.28"),
)
"""Judged once before workers are forked: what sympy imports late and what it caches is then there in each of them."""
MAX_FILES = 64
"""Files that a worker may have open: sympy imports some modules only when they are needed."""


def judge_of(rule: str) -> Callable[[str, str], bool]:
    """The function that decides by a rule, warmed up: (answer, reference) -> right."""
    module, _, name = JUDGES[rule].partition(":")
    judge = getattr(importlib.import_module(module), name)
    for answer, reference in WARM:
        judge(answer, reference)
    return judge


def serve(owner: socket.socket, judge: Callable[[str, str], bool]) -> None:
    """Start and stop workers as told, until the owner is gone."""
    workers: set[int] = set()
    try:
        while True:
            data, sockets, _, _ = socket.recv_fds(owner, 4096, 1)
            if not data:
                return
            order = json.loads(data)
            if order["do"] == "start":
                pid = os.fork()
                if pid == 0:
                    owner.close()
                    work(socket.socket(fileno=sockets[0]), judge, order)
                os.close(sockets[0])
                workers.add(pid)
                reply = {"pid": pid}
            else:
                reply = {"status": _stop(order["pid"], workers, order["grace"])}
            owner.sendall(json.dumps(reply).encode() + b"\n")
    finally:
        for pid in list(workers):
            _stop(pid, workers)


def _stop(pid: int, workers: set[int], grace: float = 0.0) -> int:
    """End a worker that does not end by itself within the grace; returns the wait status of one that did, else 0."""
    if pid not in workers:
        return 0
    workers.discard(pid)
    deadline = time.monotonic() + grace
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 0
        time.sleep(0.002)


def work(channel: socket.socket, judge: Callable[[str, str], bool], limits: dict[str, Any]) -> None:
    """Judge answers until the channel is closed. Never returns."""
    try:
        _confine(channel, limits)
        reader = channel.makefile("rb")
        for line in reader:
            answer, reference = json.loads(line)
            _allow_cpu(limits["cpu_seconds"])
            channel.sendall(json.dumps(_judged(judge, answer, reference)).encode() + b"\n")
    except BaseException:  # whatever happens here is told by the end of the channel
        os._exit(1)
    os._exit(0)


def _judged(judge: Callable[[str, str], bool], answer: str, reference: str) -> bool | str:
    try:
        return bool(judge(answer, reference))
    except MemoryError:
        return "memory"
    except Exception:  # RecursionError, and whatever sympy raises on text that nobody expected
        return "error"


def _confine(channel: socket.socket, limits: dict[str, Any]) -> None:
    """Leave the worker its channel, and nothing else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's to handle
    os.environ.clear()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    kept = channel.fileno()
    os.closerange(3, kept)
    os.closerange(kept + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    for what, most in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (most, most))


def _allow_cpu(seconds: int) -> None:
    """Let the kernel end this process after so many further seconds of processor."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, resource.RLIM_INFINITY))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[2])), judge_of(sys.argv[1]))
