"""Run a command as a process group that dies with whoever started this.

    guard.py GRACE COMMAND...     standard input: a pipe whose other end the starter holds

When the pipe closes (the starter ended, however), the group gets SIGTERM and, GRACE seconds later, SIGKILL. The exit
status is the command's; 128 + n when signal n ended it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time


def main() -> int:
    """Start, wait, tell."""
    grace, command = float(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the group; this one stays to report
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, restore_signals=True, preexec_fn=_default_signals)
    threading.Thread(target=_watch, args=(grace,), daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


def _default_signals() -> None:
    """An ignored signal stays ignored in a child unless it is reset."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _watch(grace: float) -> None:
    while os.read(0, 4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(grace)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
