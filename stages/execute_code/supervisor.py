"""The process that runs one program: `main()` in an interpreter of its own, a job on its standard input,
the outcome on its standard output, both JSON. Standard library alone, and an empty environment.

    supervisor        sees the machine; sets the limits of time, memory in all, output; says the verdict
      first process   number 1 of the program's namespace: when it ends, the kernel ends all that is left there
        program       in its own root, without rights

The verdict does not depend on anything that the program prints or ends with. The supervisor draws a number after the
program's process was forked, and gives it to that process through a pipe; the interpreter's own loop over the steps
(`_steps`) writes it back when the step before, the program and its test, has returned. No frame that the program can
reach holds it.
"""

from __future__ import annotations

import functools
import gc
import json
import operator
import os
import resource
import select
import signal
import struct
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

from stages.execute_code import landlock, linux, namespaces, seccomp

DETAIL = 300
"""Bytes of an exception's text that are kept."""
VERDICT_BYTES, NUMBER_BYTES = 4096, 32
TICK = 0.05
"""Seconds between two looks at the memory of all processes."""
ENVIRONMENT = {
    "HOME": namespaces.WORK,
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "TMPDIR": namespaces.WORK,
}
"""All that a program sees of it."""
OPEN_FILES = 64
STATUS = struct.Struct("<id")
PASSED, WRONG, ERROR, SYNTAX, EXITED = "passed", "wrong", "error", "syntax error", "exited"
TIMED_OUT, MEMORY, KILLED = "timed out", "out of memory", "killed"
REASONS = (PASSED, WRONG, ERROR, SYNTAX, EXITED, TIMED_OUT, MEMORY, KILLED)
"""How a program can end. wrong: its test's assertion did not hold."""


class Trouble(Exception):
    """The sandbox could not be made."""


def main() -> None:
    """Run the job of the standard input."""
    job = json.load(sys.stdin)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the stage ends this process, by SIGKILL
        signal.signal(number, signal.SIG_IGN)
    try:
        outcome = Supervisor(job, int(sys.argv[1])).run()
    except (Trouble, OSError) as error:
        outcome = {"trouble": str(error)}
    sys.stdout.write(json.dumps(outcome))
    sys.stdout.flush()
    os._exit(0)


class Supervisor:
    """One program's run."""

    def __init__(self, job: dict[str, Any], parent: int) -> None:
        self._job, self._parent = job, parent
        self._alone = job["mode"] == "landlock"
        self._kept: dict[int, bytes] = {}
        self._cut = False

    def run(self) -> dict[str, Any]:
        """The outcome: reason, detail, output, output_cut. Raises Trouble, OSError."""
        own_user = False if self._alone else namespaces.enter()
        linux.die_with_parent(self._parent)
        pipes = {name: os.pipe() for name in ("verdict", "output", "status", "trouble", "number")}
        first = os.fork()
        if first == 0:
            _first_process(self._job, pipes, os.getppid(), alone=self._alone, own_user=own_user)
        for name, (_, writer) in pipes.items():
            if name != "number":
                os.close(writer)
        secret = os.urandom(NUMBER_BYTES)
        os.write(pipes["number"][1], secret)
        os.close(pipes["number"][1])
        said = _read_all(pipes["trouble"][0])
        if said:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
            raise Trouble(said.decode("utf-8", "replace"))
        killed = self._watch(first, {pipes["verdict"][0]: VERDICT_BYTES, pipes["output"][0]: self._job["output"]})
        _, status, usage = os.wait4(first, 0)
        seconds = usage.ru_utime + usage.ru_stime
        if not self._alone and (line := os.read(pipes["status"][0], STATUS.size)):
            status, seconds = STATUS.unpack(line)
        verdict = self._kept[pipes["verdict"][0]]
        reason, detail = self._reason(killed, status, seconds, verdict, verdict.startswith(secret))
        output = self._kept[pipes["output"][0]].decode("utf-8", "replace")
        return {"reason": reason, "detail": detail, "output": output, "output_cut": self._cut}

    def _watch(self, first: int, limits: dict[int, int]) -> str | None:
        """Read what comes, up to a limit for each pipe, until the first process has ended. The reason for which it was
        ended here, if it was.
        """
        self._kept = dict.fromkeys(limits, b"")
        deadline = time.monotonic() + self._job["wall_seconds"]
        ended = os.pidfd_open(first)
        poll = select.poll()
        for descriptor in (*limits, ended):
            poll.register(descriptor, select.POLLIN)
        killed = None
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(1000 * TICK)}
            for descriptor in ready & limits.keys():
                if not self._keep(descriptor, limits[descriptor]):
                    poll.unregister(descriptor)
                    del limits[descriptor]
            if ended in ready:
                break
            if killed is None and (killed := self._over(first, deadline)):
                os.kill(first, signal.SIGKILL)
        for descriptor, limit in limits.items():  # all writers are gone, or what they write is not read
            os.set_blocking(descriptor, False)
            while self._keep(descriptor, limit):
                pass
        return killed

    def _keep(self, descriptor: int, limit: int) -> bool:
        """Read once. False: nothing more will come."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        kept = self._kept[descriptor]
        if len(kept) + len(data) > limit:
            self._cut = True
        self._kept[descriptor] = kept + data[: limit - len(kept)]
        return bool(data)

    def _over(self, first: int, deadline: float) -> str | None:
        if time.monotonic() > deadline:
            return TIMED_OUT
        memory, threads = _usage(first)
        if memory > self._job["memory"]:
            return MEMORY
        return KILLED if self._alone and threads > self._job["processes"] else None

    def _reason(self, killed: str | None, status: int, seconds: float, verdict: bytes, right: bool) -> tuple[str, str]:
        if killed:
            return killed, f"more than {self._job['processes']} threads" if killed == KILLED else ""
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU or (number == signal.SIGKILL and seconds >= self._job["seconds"]):
                return TIMED_OUT, ""
            return KILLED, f"by signal {number} ({signal.strsignal(number)})"
        if right and os.WEXITSTATUS(status) == 0:
            return PASSED, ""
        reason, detail, *_ = *verdict.decode("utf-8", "replace").split("\n", 2), ""
        if reason in REASONS and reason != PASSED:
            return reason, detail[:DETAIL]
        return EXITED, f"before its end, with status {os.WEXITSTATUS(status)}"


def _read_all(descriptor: int) -> bytes:
    data = b""
    while part := os.read(descriptor, 4096):
        data += part
    return data


def _usage(first: int) -> tuple[int, int]:
    """Bytes of memory, and number of threads, of a process and all that descend from it."""
    memory, threads, queue = 0, 0, [first]
    while queue:
        pid = queue.pop()
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as stream:
                memory += int(stream.read().split()[1]) * resource.getpagesize()
            tasks = os.listdir(f"/proc/{pid}/task")
            threads += len(tasks)
            for task in tasks:
                with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as stream:
                    queue += map(int, stream.read().split())
        except (OSError, ValueError, IndexError):  # it has ended just now, or the kernel does not list children
            continue
    return memory, threads


# --- in the program's namespaces --------------------------------------------------------------------------------------


def _first_process(
    job: dict[str, Any], pipes: dict[str, tuple[int, int]], parent: int, *, alone: bool, own_user: bool
) -> None:
    """Number 1 of the namespace, which forks the program and collects whatever ends. Without namespaces: the program
    itself.
    """
    try:
        linux.die_with_parent(parent)
        if not alone:
            child = os.fork()
            if child:
                _collect(child, pipes)
        _program(job, pipes, alone=alone, own_user=own_user)
    except BaseException as error:
        os.write(pipes["trouble"][1], f"{type(error).__name__}: {error}"[:DETAIL].encode())
    finally:
        os._exit(1)


def _collect(child: int, pipes: dict[str, tuple[int, int]]) -> None:
    """Wait for the program, tell how it ended, and end: with this process, all of its namespace."""
    status_writer = pipes["status"][1]
    for descriptor in {end for ends in pipes.values() for end in ends} - {status_writer}:
        os.close(descriptor)
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == child:
            os.write(status_writer, STATUS.pack(status, usage.ru_utime + usage.ru_stime))
            os._exit(0)


def _program(job: dict[str, Any], pipes: dict[str, tuple[int, int]], *, alone: bool, own_user: bool) -> None:
    """Become the program's process: everything that can fail, and then the program."""
    os.setsid()
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:  # before anything of the stage
        stream.write("1000")
    devices = [path for path in namespaces.DEVICES if os.path.exists(path)]
    readable = [*job["readable"], *devices]
    stdin = os.open(os.devnull, os.O_RDONLY)
    if not alone:
        namespaces.build_root(job["folder"], readable, job["disk"] >> 10)
        if not own_user:
            namespaces.become_nobody()
    verdict, number, trouble = pipes["verdict"][1], pipes["number"][0], pipes["trouble"][1]
    os.dup2(stdin, 0)
    os.dup2(pipes["output"][1], 1)
    os.dup2(pipes["output"][1], 2)
    for descriptor in range(3, max(stdin, *(end for ends in pipes.values() for end in ends)) + 1):
        if descriptor not in (verdict, number, trouble):
            _close(descriptor)
    linux.give_up_privileges()
    if alone:
        os.chdir("/")
        landlock.read_only(readable)
    _limit(job, others=0 if alone else 2 * own_user, alone=alone)
    seccomp.install(alone=alone)
    os.close(trouble)
    _clean_interpreter(job)
    _run(job["program"], verdict, number)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return


def _limit(job: dict[str, Any], *, others: int, alone: bool) -> None:
    """Limits of the process and of each that it starts. others: processes of the namespace that are not the
    program's.
    """
    seconds = int(job["seconds"])
    limits = {
        resource.RLIMIT_AS: job["memory"],
        resource.RLIMIT_FSIZE: job["disk"],
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if not alone:  # where it cannot start one, and the number would be that of all of the user's
        limits[resource.RLIMIT_NPROC] = job["processes"] + others
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _clean_interpreter(job: dict[str, Any]) -> None:
    """What a program finds: an interpreter as it starts, and the packages."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    sys.argv[:] = [""]
    sys.path[:] = [path for path in sys.path if path not in job["hidden"]] + [job["packages"]]
    sys.path_importer_cache.clear()
    sys.dont_write_bytecode = True
    for name in [n for n in sys.modules if n.partition(".")[0] == "stages"]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")


def _run(program: str, verdict: int, number: int) -> None:
    """The program, and then the number. Nothing here may hold what `_steps` reads."""
    ended = 1
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
    except BaseException as error:
        os.write(verdict, _described(error, SYNTAX))
        os._exit(1)
    try:
        any(_steps(code, verdict, number))
        ended = 0
    except MemoryError as error:
        os.write(verdict, _described(error, MEMORY))
    except AssertionError as error:
        os.write(verdict, _described(error, WRONG))
    except SystemExit as error:
        os.write(verdict, _described(error, EXITED))
    except BaseException as error:
        os.write(verdict, _described(error, ERROR))
    finally:
        _flush()
        os._exit(ended)


def _steps(code: types.CodeType, verdict: int, number: int) -> Iterator[object]:
    """An iterator whose first item is the program's run and whose second is the number's way back. While `any` goes
    over it, it is a value on the interpreter's stack, which no frame shows, and out of the garbage collector's lists.
    """
    write = functools.partial(os.write, verdict, os.read(number, NUMBER_BYTES))
    os.close(number)
    if len(write.args[1]) < NUMBER_BYTES:  # the supervisor was ended before it could bind this process to its life
        os._exit(1)
    steps = map(operator.call, [functools.partial(exec, code, {}), write])
    gc.freeze()
    del gc.unfreeze
    return steps


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # the program may have put anything in their place
        return


def _described(error: BaseException, reason: str) -> bytes:
    """The reason and the exception in a line. Its text is the program's code, and may do anything."""
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())
    except BaseException:
        text = type(error).__name__
    return f"{reason}\n{text[:DETAIL]}\n".encode("utf-8", "replace")
