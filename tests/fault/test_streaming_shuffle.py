"""tokenize's shuffle of an artifact that is far larger than the local disk may hold, through a store that makes its
bytes when asked: little disk, flat memory, and a kill costs the task that was at work.
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import streaming
from benchmarks.generated_store import GeneratedStore, serving

GROUP = 1 << 20
SIZES = {"GROUP_BYTES": GROUP, "SHARD_BYTES": GROUP // 2, "FAN": 8}
"""With more than eight groups, everything is dealt twice."""


def shuffled(store: GeneratedStore, scratch: Path) -> dict[str, Any]:
    """Shuffle all windows in a process of its own; where the shards are, and its peak memory."""
    scratch.mkdir(exist_ok=True)
    arguments, options = streaming.command(store, scratch, 1, **SIZES)
    return json.loads(subprocess.run(arguments, check=True, **options).stdout)


def test_little_lies_on_the_local_disk_and_memory_is_flat(tmp_path: Path) -> None:
    """37 MB through 4 MB of disk; four times the bytes of the first run take no more memory."""
    peaks = []
    for groups in (9, 36):
        scratch, most = tmp_path / f"{groups}", [0]
        with serving(GeneratedStore(groups * GROUP // 4000, 2000, 1)) as store:
            store.stored = lambda key, most=most, scratch=scratch: most.append(streaming.on_disk(scratch))
            outcome = shuffled(store, scratch)
            assert streaming.complete(store, outcome["shards"])
            assert any("deal-again" in key for key in store.numbers)
        assert GROUP < max(most) < 4 * GROUP, "a task's file while the one before is stored"
        assert streaming.on_disk(scratch) == 0
        peaks.append(outcome["peak"] * 1024)
    assert peaks[1] - peaks[0] < 32 << 20


def test_a_kill_costs_the_task_that_was_at_work(tmp_path: Path) -> None:
    """Killed while it deals and while it gathers: the same shards, and of the tasks that were
    done none is done again.
    """
    done: list[str] = []
    with serving(GeneratedStore(10 * GROUP // 4000, 2000, 1)) as store:
        for kind, count in (("-deal.files/", 4), ("-gather.files/", 5)):
            arguments, options = streaming.command(store, tmp_path, 1, **SIZES)
            with subprocess.Popen(arguments, **options) as child:

                def stored(key: str, kind: str = kind, count: int = count, child: Any = child) -> None:
                    if key.endswith(("/windows", "/shard")):
                        done.append(key)
                    if sum(kind in name for name in done) == count:
                        child.send_signal(signal.SIGKILL)

                store.stored = stored
            assert child.returncode == -signal.SIGKILL
        store.stored = lambda key: done.append(key) if key.endswith(("/windows", "/shard")) else None
        outcome = shuffled(store, tmp_path)
        assert streaming.complete(store, outcome["shards"])
    tasks = {key.rpartition(".")[0].rpartition(".")[0] for key in done}
    assert len(done) - len(tasks) <= 2 * 2, "at each kill one task was at work, and the files of one on their way"
    assert {key.rpartition("/")[2] for key in outcome["shards"]} == {"shard"}
