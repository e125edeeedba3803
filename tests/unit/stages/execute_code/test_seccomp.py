"""The filter, by an interpreter of the few classic BPF instructions that it uses."""

from __future__ import annotations

import errno
import struct
from types import SimpleNamespace

import pytest

from stages.execute_code import seccomp

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
COLUMN = {"x86_64": 0, "aarch64": 1}
READ, FORK_FLAGS, THREAD_FLAGS, NEWUSER = (0, 63), 0x01200011, 0x003D0F00, 0x10000000
PID = 4321


def verdict(machine: str, call: tuple[int, int] | int, *arguments: int, alone: bool, architecture: int = 0) -> int:
    """What the filter answers to a call."""
    number = call if isinstance(call, int) else call[COLUMN[machine]]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number, architecture or seccomp.ARCHITECTURES[machine], 0, *padded)
    instructions = seccomp.program(machine, PID if alone else None)
    accumulator, position = 0, 0
    while True:
        code, yes, no, constant = instructions[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == 0x06:
            return constant
        else:
            holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: bool(accumulator & constant)}
            position += yes if holds[code] else no


def denied(value: int) -> bool:
    return value & 0xFFFF0000 == 0x00050000 and value & 0xFFFF in (errno.EPERM, errno.ENOSYS)


@pytest.mark.parametrize("machine", COLUMN)
@pytest.mark.parametrize("alone", [False, True])
def test_what_no_program_needs_is_denied_and_the_rest_is_not(machine: str, alone: bool) -> None:
    for name, numbers in seccomp.DENIED.items():
        if numbers[COLUMN[machine]]:
            assert denied(verdict(machine, numbers, alone=alone)), name
    assert verdict(machine, READ, alone=alone) == ALLOWED
    assert denied(verdict(machine, seccomp.CLONE3, alone=alone))
    assert denied(verdict(machine, seccomp.CLONE, NEWUSER | FORK_FLAGS, alone=alone))
    assert verdict(machine, seccomp.CLONE, THREAD_FLAGS, alone=alone) == ALLOWED
    assert verdict(machine, seccomp.SOCKETPAIR, 1, alone=alone) == ALLOWED
    assert denied(verdict(machine, seccomp.SOCKETPAIR, 2, alone=alone))
    assert verdict(machine, READ, alone=alone, architecture=0x40000003) == KILLED, "32-bit calls have other numbers"


@pytest.mark.parametrize("machine", COLUMN)
def test_without_namespaces_no_other_process_is_started_or_named(machine: str) -> None:
    for name, numbers in seccomp.ALONE.items():
        if numbers[COLUMN[machine]]:
            assert denied(verdict(machine, numbers, alone=True)), name
            assert verdict(machine, numbers, alone=False) == ALLOWED, name
    assert denied(verdict(machine, seccomp.CLONE, FORK_FLAGS, alone=True))
    assert verdict(machine, seccomp.CLONE, FORK_FLAGS, alone=False) == ALLOWED
    for call in (seccomp.KILL, seccomp.TGKILL):
        assert verdict(machine, call, PID, 6, alone=True) == ALLOWED
        for other in (1, 0, 2**32 - 1, PID + 1):
            assert denied(verdict(machine, call, other, 9, alone=True))
    assert denied(verdict(machine, seccomp.PRLIMIT, PID - 1, alone=True))
    assert verdict(machine, seccomp.PRLIMIT, 0, alone=True) == ALLOWED
    assert denied(verdict(machine, seccomp.PRCTL, 1, 0, alone=True)), "it could outlive its supervisor"
    assert denied(verdict(machine, seccomp.FCNTL, 3, 8, 1, alone=True)), "a signal through F_SETOWN"


def test_the_other_numbers_of_x86_64_lead_nowhere() -> None:
    assert denied(verdict("x86_64", seccomp.X32 | 41, alone=False))


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SimpleNamespace(machine="riscv64")
    monkeypatch.setattr("os.uname", lambda: machine)
    with pytest.raises(OSError, match="no filter for riscv64"):
        seccomp.install(alone=False)
