"""Answers checked in worker processes that can be killed: usable from any thread, from asyncio and from Ray workers.

    with Verifier(workers=2) as verifier:
        verifier.verify("<think>2 + 2 = 4</think> \\\\boxed{4}", "4")            # Verdict(score=1.0, outcome='correct')
        verifier.verify_many([(response, answer), ..])
        await verifier.averify(response, answer)
        verifier.counts                                                        # {'correct': 1, ..}

A response scores 1 when it has the format (a closed thought, a boxed answer after it) and the answer is right by the
rule; everything else scores 0, and is counted by what it was. A hostile answer costs its limits (:class:`Limits`) and a
new worker, never more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Self

from stages.core.processes import without_secrets
from stages.lib.verifier.answer_extraction import MAX_CHARACTERS, after_thought, last_boxed

Rule = Literal["deepscaler", "math-verify", "math-verify-strict"]
"""The last is math-verify's, but text that is no mathematics equals nothing, not even itself."""
Outcome = Literal["correct", "wrong", "no format", "too long", "timeout", "memory", "crashed", "error"]

CACHE = 100_000
"""Judgements that are remembered: the answers of a group are often the same."""
DYING = 2.0
"""Seconds that a worker whose channel is closed gets to be gone: a process closes its files before it can be waited
for.
"""
CHUNK = 16
"""Answers sent to a worker ahead of its replies: 16 x 2 x 512 characters fit into a socket's buffer, however they are
escaped.
"""


@dataclass(frozen=True)
class Verdict:
    """score: 1.0 or 0.0."""

    score: float
    outcome: Outcome


@dataclass(frozen=True)
class Limits:
    """What one answer may cost. Processor time decides, so that a busy machine changes no score; wall time is for what
    sleeps.

    The kernel counts whole seconds: an answer gets `cpu_seconds`, and is ended within one second more.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 15.0
    memory_bytes: int = 1 << 30


class WorkerEnded(Exception):
    """A worker ended, or was ended; the outcome of the answer that it worked on."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome: Outcome = outcome


class Verifier:
    """A pool of workers under one rule. Starts nothing until it is asked; copies made by fork or pickle start their
    own.
    """

    def __init__(
        self, workers: int = 1, rule: Rule = "deepscaler", *, limits: Limits | None = None, require_format: bool = True
    ) -> None:
        """require_format: whether a response without a closed thought scores 0, whatever it boxes."""
        self.workers, self.limits, self.require_format = workers, limits or Limits(), require_format
        self.rule: Rule = rule
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, str], Outcome] = OrderedDict()
        self._server: _Server | None = None
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (self.workers, self.rule, self.limits, self.require_format)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and their server. A later call starts them anew."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()

    # --- asking -----------------------------------------------------------------------------------------------------

    def verify(self, response: str, reference: str) -> Verdict:
        """Judge one response against the reference answer."""
        return self.verify_many([(response, reference)])[0]

    async def averify(self, response: str, reference: str) -> Verdict:
        """Judge one response without blocking the event loop."""
        return await asyncio.to_thread(self.verify, response, reference)

    def verify_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Judge (response, reference) pairs, on all workers at once, in order."""
        answers: list[_Answer | Outcome] = [self._answer(response) for response, _ in pairs]
        outcomes: dict[int, Outcome] = {}
        asked: dict[tuple[str, str], list[int]] = {}
        for number, (answer, (_, reference)) in enumerate(zip(answers, pairs, strict=True)):
            if not isinstance(answer, _Answer):
                outcomes[number] = answer
            else:
                asked.setdefault((answer.text, reference), []).append(number)
        for key, outcome in self._judge(list(asked)):
            for number in asked[key]:
                outcomes[number] = outcome
        verdicts = [Verdict(float(outcomes[n] == "correct"), outcomes[n]) for n in range(len(pairs))]
        with self._lock:
            self.counts.update(verdict.outcome for verdict in verdicts)
        return verdicts

    def accepts(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether bare answers are the references by the rule, always by evaluation, even of equal texts: a test of
        references.
        """
        fit = [number for number, pair in enumerate(pairs) if max(map(len, pair)) <= MAX_CHARACTERS]
        chunks = self._chunks([pairs[number] for number in fit])
        outcomes = [outcome for chunk in self._spread(chunks) for outcome in chunk]
        right = {number for number, outcome in zip(fit, outcomes, strict=True) if outcome == "correct"}
        return [number in right for number in range(len(pairs))]

    def _answer(self, response: str) -> _Answer | Outcome:
        """The boxed answer of a response, or why it has none that is looked at."""
        rest = after_thought(response) if self.require_format else response.rpartition("</think>")[2]
        answer = last_boxed(rest) if rest is not None else None
        outcome: Outcome = "no format" if not answer else "too long"
        return _Answer(answer) if answer and len(answer) <= MAX_CHARACTERS else outcome

    def _judge(self, keys: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], Outcome]]:
        """Outcomes of (answer, reference) pairs: from memory, by the text itself, or of workers."""
        left = []
        for key in keys:
            with self._lock:
                known = self._cache.get(key)
            if known is None and key[0] == key[1].strip():
                known = "correct"
            if known is None and len(key[1]) > MAX_CHARACTERS:
                known = "too long"
            if known is None:
                left.append(key)
            else:
                yield key, known
        chunks = self._chunks(left)
        for chunk, outcomes in zip(chunks, self._spread(chunks), strict=True):
            for key, outcome in zip(chunk, outcomes, strict=True):
                self._remember(key, outcome)
                yield key, outcome

    def _chunks(self, pairs: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
        share = max(1, min(CHUNK, -(-len(pairs) // self.workers)))
        return [pairs[at : at + share] for at in range(0, len(pairs), share)]

    def _spread(self, chunks: list[list[tuple[str, str]]]) -> Iterable[list[Outcome]]:
        if len(chunks) < 2 or self.workers == 1:
            return map(self._of_worker, chunks)
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(self._of_worker, chunks))

    def _remember(self, key: tuple[str, str], outcome: Outcome) -> None:
        if outcome in ("correct", "wrong", "error"):  # the others depend on how busy the machine is
            with self._lock:
                self._cache[key] = outcome
                if len(self._cache) > CACHE:
                    self._cache.popitem(last=False)

    # --- workers ----------------------------------------------------------------------------------------------------

    def _of_worker(self, pairs: list[tuple[str, str]]) -> list[Outcome]:
        """Have a worker judge the pairs. When one ends it, a new worker goes on with the next."""
        outcomes: list[Outcome] = []
        server, idle = self._running()
        worker = idle.get()
        try:
            while len(outcomes) < len(pairs):
                if worker is None:
                    worker = server.start(self.limits)
                try:
                    for outcome in worker.judge(pairs[len(outcomes) :], self.limits.wall_seconds):
                        outcomes.append(outcome)
                except WorkerEnded as ended:
                    outcomes.append(ended.outcome)
                    worker = None
        finally:
            idle.put(worker)
        return outcomes

    def _running(self) -> tuple[_Server, queue.LifoQueue[_Worker | None]]:
        with self._lock:
            if (
                self._server is None or self._server.owner != os.getpid()
            ):  # a fork has its parent's server, which is not its own
                self._server = _Server(self.rule)
                self._idle = queue.LifoQueue()
                for _ in range(self.workers):
                    self._idle.put(None)
            return self._server, self._idle


@dataclass(frozen=True)
class _Answer:
    text: str


def _rebuilt(workers: int, rule: Rule, limits: Limits, require_format: bool) -> Verifier:
    return Verifier(workers, rule, limits=limits, require_format=require_format)


class _Server:
    """The owner's side of `stages.lib.verifier.fork_server`."""

    def __init__(self, rule: Rule) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair()
        command = [sys.executable, "-m", "stages.lib.verifier.fork_server", rule, str(theirs.fileno())]
        environment = {**without_secrets(), "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        self._reader = self._channel.makefile("rb")

    def start(self, limits: Limits) -> _Worker:
        """Fork a worker."""
        ours, theirs = socket.socketpair()
        order = {"do": "start", "cpu_seconds": limits.cpu_seconds, "memory_bytes": limits.memory_bytes}
        with theirs:
            reply = self._ask(order, theirs.fileno())
        return _Worker(self, ours, reply["pid"])

    def stop(self, pid: int, grace: float) -> int:
        """End a worker; returns its wait status if it ended by itself within so many seconds, else 0."""
        return self._ask({"do": "stop", "pid": pid, "grace": grace})["status"]

    def _ask(self, order: dict[str, object], *fds: int) -> dict[str, int]:
        with self._lock:
            try:
                socket.send_fds(self._channel, [json.dumps(order).encode()], list(fds))
                return json.loads(self._reader.readline())
            except (OSError, ValueError) as error:
                raise RuntimeError("the verifier's server ended: its messages are on standard error") from error

    def close(self) -> None:
        """End everything: the server ends its workers when the channel is closed."""
        self._reader.close()
        self._channel.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Worker:
    """The owner's side of one worker."""

    def __init__(self, server: _Server, channel: socket.socket, pid: int) -> None:
        self._server, self._channel, self._pid = server, channel, pid
        self._buffer = b""

    def judge(self, pairs: Sequence[tuple[str, str]], seconds: float) -> Iterator[Outcome]:
        """Outcomes in order. Raises WorkerEnded for the pair at which the worker ended or ran out of time."""
        lines = b"".join(json.dumps(pair).encode() + b"\n" for pair in pairs)
        try:
            self._channel.settimeout(seconds)
            self._channel.sendall(lines)
        except OSError:
            raise WorkerEnded(self._end("crashed")) from None
        for _ in pairs:
            reply = self._line(time.monotonic() + seconds)
            yield ("correct" if reply else "wrong") if isinstance(reply, bool) else reply

    def _line(self, deadline: float) -> bool | Outcome:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            try:
                self._channel.settimeout(max(left, 0.001))
                data = self._channel.recv(4096) if left > 0 else None
            except TimeoutError:
                data = None
            except OSError:
                data = b""
            if data is None:
                raise WorkerEnded(self._end("timeout"))
            if not data:
                raise WorkerEnded(self._end("crashed"))
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _end(self, outcome: Outcome) -> Outcome:
        """Make sure that the worker is gone; what ended it says more than that it ended."""
        self._channel.close()
        with contextlib.suppress(RuntimeError):
            status = self._server.stop(self._pid, DYING if outcome == "crashed" else 0.0)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
                return "timeout"
        return outcome
