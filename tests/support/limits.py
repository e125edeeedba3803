"""The time limits of all tests, in seconds. They are against hangs alone: no test may fail because a machine is slow.

Each is at least ten times what its work takes on two idle cores, and none is a claim about speed.
"""

from __future__ import annotations

HANG = 600.0
"""One step: a condition to wait for, a process to end, an answer to come. All take seconds."""
TEST = 1800.0
"""One test with its fixtures."""
DAG = 4800.0
"""The whole DAG, or an engine's environment made anew and used: some seven minutes. CI ends everything after 90."""
