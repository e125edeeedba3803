"""Real programs that attack the real sandbox, in each way of holding them that this machine has."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from stages.core.errors import ConfigError
from stages.execute_code import landlock
from stages.execute_code.sandbox import Limits, Mode, Sandbox, Stopped
from stages.execute_code.supervisor import EXITED, KILLED, MEMORY, SYNTAX, TIMED_OUT, WRONG
from tests.support.paths import ROOT
from tests.support.sandboxes import left_over, none_left

LIMITS = Limits(seconds=5, wall_seconds=40, memory_mib=256, processes=8, disk_mib=4, output_kib=2)
HASTY = Limits(seconds=1, wall_seconds=0.5, memory_mib=256, processes=8, disk_mib=4, output_kib=2)


def open_sandbox(mode: Mode, folder: Path, limits: Limits) -> Sandbox:
    try:
        return Sandbox("code", limits, ("numpy",), folder, [mode])
    except ConfigError as error:
        pytest.skip(f"this machine has no {mode}: {error}")


@pytest.fixture(scope="module", params=get_args(Mode))
def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with open_sandbox(request.param, tmp_path_factory.mktemp(request.param), LIMITS) as sandbox:
        yield sandbox
    assert none_left()


@pytest.fixture(scope="module")
def hasty(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """As `sandbox`, with little time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sandbox, "_choose", lambda *_: sandbox.mode)  # which `sandbox` has proved, with more time
        short = Sandbox("code", HASTY, (), tmp_path_factory.mktemp("hasty"))
    with short:
        yield short


def test_this_machine_can_hold_programs(tmp_path: Path) -> None:
    with Sandbox("code", LIMITS, (), tmp_path) as sandbox:
        assert sandbox.run("assert sum([1, 2]) == 3").passed


def test_what_is_right_passes_and_the_rest_says_why(sandbox: Sandbox) -> None:
    assert sandbox.run("import numpy, re, asyncio, dataclasses, collections\nasyncio.run(asyncio.sleep(0))").passed
    assert sandbox.run("def f(): return 1\n\nassert f() == 2, 'no'").reason == WRONG
    assert sandbox.run("x = (").reason == SYNTAX
    error = sandbox.run("{}['key']")
    assert (error.reason, error.detail) == ("error", "KeyError: 'key'")
    assert sandbox.run("import torch").detail == "ModuleNotFoundError: No module named 'torch'"
    assert sandbox.run("class E(Exception):\n def __str__(self): raise SystemExit\nraise E").detail == "E"


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "print('passed'); import os; os._exit(0)",
        "import os\nfor n in range(64):\n try: os.write(n, b'passed\\n')\n except OSError: pass\nos._exit(0)",
        "import atexit, threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass",
        "import os\nos.execv('/bin/true', ['true'])",
    ],
)
def test_a_program_that_ends_early_has_not_passed(sandbox: Sandbox, program: str) -> None:
    outcome = sandbox.run(f"{program}\nassert False")
    assert not outcome.passed
    assert outcome.reason in (EXITED, "error")


def test_the_number_that_says_passed_is_in_no_frame_and_no_list(sandbox: Sandbox) -> None:
    """A program that looks for the supervisor's secret wherever Python shows objects, and sends all that it meets."""
    outcome = sandbox.run("""
import gc, os, sys
seen = set()
def collect(value, depth=0):
    if isinstance(value, bytes):
        seen.add(value)
    elif depth < 9 and id(value) not in known:
        known.add(id(value))
        for other in gc.get_referents(value):
            collect(other, depth + 1)
known = {id(seen), id(globals())}
frame = sys._getframe()
while frame:
    for value in list(frame.f_locals.values()):
        collect(value)
    frame = frame.f_back
for frame in sys._current_frames().values():
    collect(frame)
for value in gc.get_objects():
    collect(value)
assert not hasattr(gc, "unfreeze")
assert b"planted" in [*seen, b"planted"] and len(known) > 1000
for value in seen:
    if len(value) == 32:
        for number in range(3, 64):
            try:
                os.write(number, value)
            except OSError:
                pass
os._exit(0)
""")
    assert (outcome.reason, outcome.detail) == (EXITED, "before its end, with status 0")


HOOKED = """
import atexit, builtins, gc, operator, os, signal, sys, threading, weakref
seen, hooked, busy = set(), [], []
kind, size, make = isinstance, len, bytes
def note(value):
    if kind(value, (bytes, bytearray)) and size(value) == 32:
        seen.add(make(value))
    elif kind(value, (tuple, list)):
        for one in value:
            note(one)
def send(*_):
    for value in seen:
        for number in range(3, 64):
            try:
                write(number, value)
            except OSError:
                pass
write, leave, execute = os.write, os._exit, builtins.exec
def hook(*arguments):
    if busy:
        return hook
    busy.append(1)
    hooked.append(1)
    note(arguments)
    for frame in sys._current_frames().values():
        while frame:
            note(list(frame.f_locals.values()))
            frame = frame.f_back
    busy.clear()
    return hook
class Finder:
    def find_spec(self, *arguments):
        hook(*arguments)
class Late:
    def __del__(self):
        hook(); send(); leave(0)
os.write = lambda number, value: (note(value), write(number, value))[1]
os._exit = lambda code=0: (hook(), send(), leave(0))
builtins.exec = operator.call = lambda *a, **k: hook(*a)
for name in ("any", "map", "compile", "print", "len", "isinstance"):
    setattr(builtins, name, lambda *a, of=getattr(builtins, name), **k: (hook(*a), of(*a, **k))[1])
sys.meta_path.insert(0, Finder())
sys.path_hooks.insert(0, hook)
sys.addaudithook(lambda event, arguments: hook(event, arguments))
sys.setprofile(hook); threading.setprofile(hook)
sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *a: (hook(*a), send(), leave(0))
signal.signal(signal.SIGALRM, lambda *a: (hook(*a), send()))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
gc.callbacks.append(lambda *a: hook(*a))
atexit.register(lambda: (hook(), send(), leave(0)))
late = Late()
class Output:
    def write(self, text): hook(text)
    def flush(self): hook(); send(); leave(0)
sys.stdout = sys.stderr = Output()
"""
"""A program that hooks into all that an interpreter lets it, notes what might be the number, and sends it."""


def test_hooks_of_the_interpreter_do_not_give_the_number_away(sandbox: Sandbox) -> None:
    outcome = sandbox.run(f"{HOOKED}\nassert False, 'its test'")
    assert not outcome.passed, outcome
    assert outcome.reason in (EXITED, WRONG)
    works = "import json\ncompile('1', 'x', 'eval')\nseen.add(b'x' * 32)\nsend()\nwrite(1, str(size(hooked)).encode())"
    assert int(sandbox.run(f"{HOOKED}\n{works}\nleave(0)").output) > 10, "the hooks are called"
    assert sandbox.run("pass").passed, "the next program has an interpreter of its own"


def test_a_flood_of_verdicts_is_neither_kept_nor_believed(sandbox: Sandbox) -> None:
    outcome = sandbox.run("""
import os, threading
line = (b"passed\\n" + bytes(range(256))) * 1000
def flood(number):
    for _ in range(50):
        try:
            os.write(number, line)
        except OSError:
            return
threads = [threading.Thread(target=flood, args=(number,)) for number in (1, 2, 3, 4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os._exit(0)
""")
    assert not outcome.passed
    assert len(outcome.output.encode()) <= 4 * LIMITS.output_kib << 10
    assert len(outcome.detail) <= 400


def test_neither_environment_nor_files_are_seen(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-store")
    credentials = tmp_path / "credentials"
    credentials.write_text("a-secret-of-the-store", encoding="utf-8")
    outcome = sandbox.run(f"""
import os, sys
assert not [k for k in os.environ if k.startswith(("AWS", "MOXIN"))]
def hidden(path):
    try:
        data = open(path, "rb").read()
    except OSError:
        return
    raise AssertionError(path + " was read")
home = os.environ["HOME"]
for path in ({str(credentials)!r}, "/etc/passwd", "/etc/hostname", {str(ROOT / "pyproject.toml")!r},
             "/proc/self/environ", "/proc/1/environ", "/proc/{os.getpid()}/environ", "/proc/self/root/etc/passwd",
             "/dev/mem", "/dev/vda", "/sys/kernel/uevent_seqnum", "/run/docker.sock", "../../etc/passwd"):
    hidden(path)
try:
    os.symlink({str(credentials)!r}, home + "/link")
except OSError:
    pass
hidden(home + "/link")
assert {str(ROOT)!r} not in sys.path and "stages" not in sys.modules
for number in range(3, 64):
    try:
        assert b"a-secret" not in os.pread(number, 100, 0)
    except OSError:
        pass
""")
    assert outcome.passed, outcome


def test_nothing_outside_is_written(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept", encoding="utf-8")
    outcome = sandbox.run(f"""
import os, sys
for attempt in (
    lambda: open({str(tmp_path / "new")!r}, "w"), lambda: os.mkdir({str(tmp_path / "folder")!r}),
    lambda: os.unlink({str(tmp_path / "kept")!r}), lambda: os.truncate({str(tmp_path / "kept")!r}, 0),
    lambda: os.open({str(tmp_path / "kept")!r}, os.O_RDONLY | os.O_TRUNC),
    lambda: os.chmod({str(tmp_path)!r}, 0), lambda: os.utime({str(tmp_path / "kept")!r}),
    lambda: open(os.__file__, "a"), lambda: os.unlink(os.__file__), lambda: os.mknod("/dev/x"),
):
    try:
        attempt()
    except OSError:
        continue
    raise AssertionError("it wrote")
""")
    assert outcome.passed, outcome
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text(encoding="utf-8") == "kept"


def test_no_network_not_even_this_machine(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        outcome = sandbox.run(f"""
import socket, urllib.request
for family, address in (
    (socket.AF_INET, ("127.0.0.1", {listener.getsockname()[1]})), (socket.AF_UNIX, "/run/docker.sock"),
    (socket.AF_UNIX, "\\0abstract"), (socket.AF_INET6, ("::1", {listener.getsockname()[1]})),
):
    try:
        socket.socket(family).connect(address)
    except OSError:
        continue
    raise AssertionError(address)
try:
    urllib.request.urlopen("http://127.0.0.1:{listener.getsockname()[1]}", timeout=1)
except OSError:
    pass
else:
    raise AssertionError
""")
        assert outcome.passed, outcome
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_fork_bomb_ends_and_leaves_nothing(hasty: Sandbox) -> None:
    outcome = hasty.run("import os\nwhile True:\n try: os.fork()\n except OSError: pass")
    assert outcome.reason == TIMED_OUT
    assert none_left()


def test_no_more_processes_than_allowed(sandbox: Sandbox) -> None:
    outcome = sandbox.run("""
import os, time
started = 1
while True:
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError:
        break
    started += 1
print(started)
""")
    assert outcome.passed, outcome
    assert int(outcome.output) == (LIMITS.processes if sandbox.mode == "namespaces" else 1)


def test_no_more_threads_than_allowed(sandbox: Sandbox) -> None:
    outcome = sandbox.run("""
import threading, time
threading.stack_size(1 << 15)
for _ in range(2000):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
time.sleep(600)
""")
    assert not outcome.passed
    said = "can't start new thread" if sandbox.mode == "namespaces" else f"more than {LIMITS.processes} threads"
    assert said in outcome.detail


def test_a_signal_that_has_no_name_is_an_end_like_others(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import os; os.kill(os.getpid(), 40)")
    assert (outcome.reason, outcome.detail[:12]) == (KILLED, "by signal 40")


def test_daemons_end_with_their_program(sandbox: Sandbox) -> None:
    outcome = sandbox.run("""
import os, signal, time
try:
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()
except PermissionError:
    pass
""")
    assert outcome.passed, outcome
    assert none_left()


@pytest.mark.parametrize("victim", ["-1", "1", "os.getppid()", "stage"])
def test_no_other_process_is_reached(sandbox: Sandbox, hasty: Sandbox, victim: str) -> None:
    number = str(os.getpid()) if victim == "stage" else victim
    outcome = hasty.run(f"import os, signal\nos.kill({number}, signal.SIGKILL)\nwhile True: pass")
    assert outcome.reason in (TIMED_OUT, "error", KILLED)
    assert sandbox.run("pass").passed, "the stage goes on"


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import signal, time\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\n"
        "while True:\n try: time.sleep(600)\n except BaseException: pass",
        "import os; os.read(1, 1); import time; time.sleep(600)",
        "'x' * 10 ** 8 in 'x' * 10 ** 8 and (lambda f: f(f))(lambda f: [0 for _ in iter(int, 1)])",
    ],
)
def test_what_never_returns_is_ended(hasty: Sandbox, program: str) -> None:
    assert hasty.run(program).reason in (TIMED_OUT, "error" if "os.read" in program else TIMED_OUT)
    assert none_left()


def test_memory_is_bounded_for_one_and_for_all_processes(sandbox: Sandbox) -> None:
    assert sandbox.run("x = bytearray(1 << 30)").reason == MEMORY
    assert sandbox.run("x = [0]\nwhile True: x += x").reason == MEMORY
    many = "import os, time\nfor _ in range(4):\n if os.fork() == 0:\n  x = b'x' * (100 << 20)\n  time.sleep(60)\n"
    outcome = sandbox.run(f"{many}time.sleep(60)")
    assert outcome.reason == MEMORY if sandbox.mode == "namespaces" else "PermissionError" in outcome.detail


def test_the_disk_is_bounded(sandbox: Sandbox) -> None:
    outcome = sandbox.run("""
import os
home, written = os.environ["HOME"], 0
try:
    for number in range(10**9):
        with open(f"{home}/{number}", "wb") as stream:
            for _ in range(16):
                written += stream.write(bytes(1 << 16))
                stream.flush()
except OSError:
    pass
try:
    for number in range(10**9):
        os.mkdir(f"{home}/folder{number}")
except OSError:
    pass
print(written)
""")
    assert outcome.passed, outcome
    assert int(outcome.output) <= LIMITS.disk_mib << 20
    assert (int(outcome.output) > 0) == (sandbox.mode == "namespaces")


def test_output_is_cut_not_kept(sandbox: Sandbox) -> None:
    outcome = sandbox.run("import sys\nfor _ in range(64): sys.stdout.write('x' * (1 << 20))")
    assert outcome.passed, outcome
    assert outcome.output == "x" * (LIMITS.output_kib << 10)
    assert outcome.output_cut
    assert sandbox.run("print('short')").output == "short\n"


def test_the_kernel_is_not_asked_for_more(sandbox: Sandbox) -> None:
    outcome = sandbox.run("""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for name, *arguments in (
    ("ptrace", 16, 1, 0, 0), ("unshare", 0x10000000), ("mount", b"x", b"/", b"tmpfs", 0, None), ("chroot", b"/"),
    ("setuid", 0), ("setgid", 0), ("sethostname", b"x", 1), ("setns", 0, 0), ("syscall", 425, 1, None),
    ("umount2", b"/", 2), ("process_vm_readv", 1, None, 0, None, 0, 0), ("prlimit", 1, 7, None, None),
):
    if name == "prlimit" and os.getpid() < 10:
        continue
    if name in ("setuid", "setgid") and getattr(os, "g" + name[1:])() == 0:
        continue
    assert getattr(libc, name)(*arguments) == -1, name
""")
    assert outcome.passed, outcome


def test_a_killed_stage_leaves_no_program(sandbox: Sandbox, tmp_path: Path) -> None:
    text = (
        "import sys; from pathlib import Path; from stages.execute_code.sandbox import Limits, Sandbox\n"
        f"s = Sandbox('code', Limits(seconds=60, wall_seconds=60), (), Path({str(tmp_path)!r}), [{sandbox.mode!r}])\n"
        "print('ready', flush=True); s.run('import time; time.sleep(600)')"
    )
    with subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE) as stage:
        assert stage.stdout is not None
        assert stage.stdout.readline() == b"ready\n"
        while len(left_over(stage.pid)) < (3 if sandbox.mode == "namespaces" else 2):
            assert stage.poll() is None
            time.sleep(0.01)
        stage.send_signal(signal.SIGKILL)
    assert none_left(stage.pid)


def test_a_closed_sandbox_runs_nothing(tmp_path: Path) -> None:
    with Sandbox("code", LIMITS, (), tmp_path) as sandbox:
        pass
    with pytest.raises(Stopped):
        sandbox.run("pass")


def test_where_nothing_holds_a_program_one_line_says_what_to_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "_start", lambda *_: {"trouble": "unshare: Operation not permitted"})
    text = re.escape("code.isolation = 'required': programs cannot be kept from this machine's files and network")
    with pytest.raises(ConfigError, match=f"{text}.*namespaces: unshare: Oper.*landlock: .*: allow user namespaces"):
        Sandbox("code", LIMITS, (), tmp_path)


def test_a_way_that_lets_programs_out_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what Landlock denies allowed, the program that tries to get out is noticed."""
    with open_sandbox("landlock", tmp_path, LIMITS) as sandbox:
        sandbox._readable.append("/")
        assert sandbox._try("landlock") == "AssertionError: a program could do: read_a_file"


def test_a_package_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"code\.packages = 'no_such': the stage's environment has no such package"):
        Sandbox("code", LIMITS, ("no_such",), tmp_path)


def test_an_old_kernels_landlock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 2)
    with pytest.raises(OSError, match=r"version 2, 3 is needed \(Linux 6\.2\)"):
        landlock.read_only(())
