"""`@compiled`: a function compiled by numba, without the GIL, its machine code kept on disk between runs.

The code is kept beside the source, or, where that is read-only (an image), under the temporary folder: numba alone would
refuse to compile there. Nothing is compiled before the first call.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first call. Results are those of the same Python on fixed-width integers."""
    if not numba.config.CACHE_DIR and not os.access(Path(function.__code__.co_filename).parent, os.W_OK):  # type: ignore[attr-defined]
        numba.config.CACHE_DIR = str(Path(tempfile.gettempdir()) / f"numba-{os.getuid()}")  # type: ignore[attr-defined]
    return numba.njit(nogil=True, cache=True)(function)


@compiled
def mix(value):
    """A bijection of uint64 whose every output bit depends on every input bit (MurmurHash3's fmix64)."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> np.uint64(33)
    return value
