"""What a probe program is: requests as JSON lines on standard input, one answer as a JSON line for each as it comes.

def open_one(request) -> str: ...           # what was found, one line; raises StageError with what is wrong
if __name__ == "__main__":
    serve(open_one)
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stages.core.errors import StageError

THREADS = 8


def serve(open_one: Callable[[Mapping[str, Any]], str]) -> None:
    """Answer every request; a slow one holds up no other. Ends without waiting for threads that hang: whoever asks has
    a deadline.
    """
    out, lock = os.fdopen(os.dup(1), "w", encoding="utf-8"), threading.Lock()
    os.dup2(2, 1)  # libraries that print must not disturb the answers

    def answer(number: int, request: Mapping[str, Any]) -> None:
        try:
            outcome = {"ok": True, "text": open_one(request)}
        except StageError as error:
            outcome = {"ok": False, "text": str(error).partition("\n")[0]}
        except Exception as error:  # a client library's own: the line is for people
            outcome = {"ok": False, "text": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        with lock:
            out.write(json.dumps({"number": number, **outcome}) + "\n")
            out.flush()

    with ThreadPoolExecutor(THREADS) as pool:
        for number, line in enumerate(sys.stdin):
            pool.submit(answer, number, json.loads(line))
