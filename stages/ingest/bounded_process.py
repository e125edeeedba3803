"""Work on one record that cannot hold up a shard: done in a process beside this one, with bounds of time and memory.

    with BoundedProcess() as guard:
        text, reason = guard.call("page", body, content_type="text/html", main_content=True)

What no check beforehand can rule out, a parser that does not end or that ends its process, is ended from outside,
counted, and the next record finds a new process. The work is one message each way; the process is started once, for all
records of a shard.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Self

from stages.core import errors
from stages.core.files import ROOT
from stages.core.processes import cpu_seconds, without_secrets

SECONDS = 30.0
"""Processor time that one record may take: 10,000 times what a page takes, so that no load of the machine reaches it.
"""
PATIENCE = 0.5
"""Seconds by the clock before anybody looks at the processor time."""
WALL = 20
"""And this many times that by the clock, for work that waits."""
MEMORY = 3 << 29
"""Bytes that the process may use: a page of 64 MiB fits."""
PIPE = 1 << 20
"""Bytes of a pipe: a page goes through at once."""
HEAD = struct.Struct("<I")
"""Bytes of a message's head, JSON, which says how long what follows is."""
SLOW, MEMORY_OUT, DIED = "took too long", "took too much memory", "ended its reader"


class BoundedProcess:
    """The process beside, started when it is needed."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._seconds, self._memory = seconds, memory
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, name: str, data: bytes, **options: Any) -> tuple[str, str]:
        """(text, reason) of a function of `FUNCTIONS`; ('', reason) for a record that goes over a bound."""
        for again in (True, False):
            outcome = self._try(name, [(data, options)])
            if isinstance(outcome, list):
                return outcome[0]
            if outcome != DIED or not again:
                return "", outcome
        # a process that ended once may have been somebody else's doing: the machine's memory, a person's kill
        raise AssertionError

    def call_many(self, name: str, records: Sequence[tuple[bytes, dict[str, Any]]]) -> list[tuple[str, str]]:
        """As `call` for each of some records, in one message; one by one when one of them goes over a bound."""
        outcome = self._try(name, records) if len(records) > 1 else ""
        return outcome if isinstance(outcome, list) else [self.call(name, data, **options) for data, options in records]

    def _try(self, name: str, records: Sequence[tuple[bytes, dict[str, Any]]]) -> list[tuple[str, str]] | str:
        """The answers, or the bound that was gone over."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        head = json.dumps([name, [[len(data), options] for data, options in records]]).encode()
        try:
            process.stdin.write(b"".join((HEAD.pack(len(head)), head, *(data for data, _ in records))))
            process.stdin.flush()
            if not self._comes(process):
                self.close()
                return SLOW
            outcomes = json.loads(_exactly(process.stdout, *HEAD.unpack(_exactly(process.stdout, HEAD.size))))
            texts = [_exactly(process.stdout, size).decode("utf-8", "surrogatepass") for _, _, size in outcomes]
        except (BrokenPipeError, EOFError):
            self.close()
            return DIED
        if any(kind == "memory" for kind, _, _ in outcomes):
            self.close()
            return MEMORY_OUT
        for kind, value, _ in outcomes:
            if kind == "error":
                raise getattr(errors, value[0])(value[1])
        return [(text, value) for text, (_, value, _) in zip(texts, outcomes, strict=True)]

    def _comes(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the answer, or for the process's end. False: it takes too long."""
        assert process.stdout is not None
        if select.select([process.stdout], [], [], PATIENCE)[0]:
            return True
        started, began = time.monotonic(), cpu_seconds(process.pid)
        while True:
            if select.select([process.stdout], [], [], PATIENCE)[0]:
                return True
            if cpu_seconds(process.pid) - began > self._seconds or time.monotonic() - started > WALL * self._seconds:
                return False

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stages.ingest.bounded_process", str(os.getpid()), str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=without_secrets() | {"PYTHONPATH": path},
        )
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # beyond what a user may have, a page comes in pieces
                fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, PIPE)
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_shared: tuple[int, BoundedProcess] | None = None


def shared() -> BoundedProcess:
    """The guard of this process: a forked one has its own."""
    global _shared
    if _shared is None or _shared[0] != os.getpid():
        _shared = (os.getpid(), BoundedProcess())
    return _shared[1]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


# --- in the process beside
# ---------------------------------------------------------------------------------------------


def _page(data: bytes, options: dict[str, Any]) -> tuple[str, str]:
    from stages.ingest.html_text import page
    from stages.ingest.http_body import Undecodable, decoded

    try:
        body = decoded(data, options["encoding"], options["transfer"], options["limit"])
    except Undecodable as error:
        return "", str(error)
    return page(body, options["content_type"], options["main_content"])


def _clean(data: bytes, options: dict[str, Any]) -> tuple[str, str]:
    from stages.ingest.heuristics import cleaned

    text, rule = cleaned(data.decode("utf-8"), options["language_model"])
    return text, rule or ""


FUNCTIONS = {"page": _page, "clean": _clean}


def _function(name: str) -> Callable[[bytes, dict[str, Any]], tuple[str, str]]:
    """One of `FUNCTIONS`, or of another module: `module.function`."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function) if module else FUNCTIONS[name]


def main() -> None:
    """Answer messages until the other side is gone."""
    parent, memory = int(sys.argv[1]), int(sys.argv[2])
    from stages.lib.data.process_pool import die_with_parent

    die_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the stage ends us, when it has ended
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    questions = sys.stdin.buffer
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while head := questions.read(HEAD.size):
        name, records = json.loads(questions.read(*HEAD.unpack(head)))
        outcomes, bodies = [], []
        for data, options in [(questions.read(length), options) for length, options in records]:
            kind, value, body = _done(name, data, options)
            outcomes.append([kind, value, len(body)])
            bodies.append(body)
        answer = json.dumps(outcomes).encode()
        answers.write(b"".join((HEAD.pack(len(answer)), answer, *bodies)))
        answers.flush()


def _done(name: str, data: bytes, options: dict[str, Any]) -> tuple[str, Any, bytes]:
    """(how it went, the reason or the error, the text) of one record."""
    try:
        text, reason = _function(name)(data, options)
        return "ok", reason, text.encode("utf-8", "surrogatepass")
    except MemoryError:
        return "memory", "", b""
    except errors.StageError as error:
        return "error", [type(error).__name__, str(error)], b""
    except Exception as error:
        return "ok", f"its reader failed ({type(error).__name__})", b""


if __name__ == "__main__":
    main()
