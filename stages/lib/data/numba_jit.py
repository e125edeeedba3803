"""`@njit`: a function compiled by numba, without the GIL, its machine code kept on disk between runs.

The code is kept beside the source, or, where that is read-only (an image), under the temporary folder: numba alone
would refuse to compile there. Nothing is compiled before the first call. How long that takes is told apart from a
stage's work (`stages.core.timed_part.ONCE`); of worker processes it is not.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding
from numba.core import event

from stages.core.timed_part import ONCE

MARK = b"stages.lib.data.numba_jit import"
"""What files with compiled functions say (and this one)."""


def njit(function: Callable[..., Any]) -> Any:
    """Compile on first call. Results are those of the same Python on fixed-width integers."""
    _configure()
    return numba.njit(nogil=True, cache=True)(function)


class _Compiling(event.Listener):
    """Times what is compiled, not what is read from disk. Functions that one calls are compiled within it, and other
    threads' beside it.
    """

    def __init__(self) -> None:
        self._under_way, self._lock = 0, threading.Lock()

    def on_start(self, event: Any) -> None:
        """One more."""
        with self._lock:
            self._under_way += 1
            if self._under_way == 1:
                ONCE.__enter__()

    def on_end(self, event: Any) -> None:
        """One less."""
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                ONCE.__exit__()


@functools.cache
def _configure() -> None:
    """Where machine code is kept, and for which processor it is made.

    numba takes a function's kept code for good as long as the function's own file is unchanged, though it holds the
    code of the
    functions that it calls: the folder's name is a digest of all files with compiled functions. On processors with
    AVX-512 LLVM uses half of each register unless told otherwise, for the sake of the clock of the first of them.
    """
    event.register("numba:compile", _Compiling())
    config: Any = numba.config  # type: ignore[attr-defined]
    home = Path(__file__).resolve().parents[2]
    sources = [path.read_bytes() for path in sorted([*home.glob("*/*.py"), *home.glob("lib/*/*.py")])]
    digest = hashlib.sha256(b"".join(source for source in sources if MARK in source)).hexdigest()[:16]
    base = config.CACHE_DIR or (
        str(home / "__pycache__") if os.access(home, os.W_OK) else f"{tempfile.gettempdir()}/numba-{os.getuid()}"
    )
    config.CACHE_DIR = str(Path(base) / digest)
    features = binding.get_host_cpu_features()
    if config.CPU_NAME is None and config.CPU_FEATURES is None and features.get("avx512f"):
        config.CPU_NAME, config.CPU_FEATURES = binding.get_host_cpu_name(), features.flatten() + ",-prefer-256-bit"


@njit
def fmix64(value):
    """A bijection of uint64 whose every output bit depends on every input bit (MurmurHash3's fmix64).

    uint64 in, uint64 out.
    """
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> np.uint64(33)
    return value


@njit
def decode(source, position):
    """The code point at `position` of valid UTF-8, and the position after it.

    source: [bytes] uint8. Returns (uint32, int64).
    """
    first = np.uint32(source[position])
    if first < 0x80:
        return first, position + 1
    second = np.uint32(source[position + 1]) & np.uint32(0x3F)
    if first < 0xE0:
        return (first & np.uint32(0x1F)) << np.uint32(6) | second, position + 2
    third = np.uint32(source[position + 2]) & np.uint32(0x3F)
    if first < 0xF0:
        return (first & np.uint32(0xF)) << np.uint32(12) | second << np.uint32(6) | third, position + 3
    fourth = np.uint32(source[position + 3]) & np.uint32(0x3F)
    high = (first & np.uint32(7)) << np.uint32(18) | second << np.uint32(12)
    return high | third << np.uint32(6) | fourth, position + 4
