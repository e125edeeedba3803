"""faults.md I: a full disk is told as one, with the folder, the disk and what is free, whatever library met it. On a
real, small file system.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from stages.core import runtime
from stages.core.errors import ExitClass, InfraError
from stages.core.failures import classify
from stages.core.ledger import Ledger
from tests.support.probe_pipeline import Stream, request_of
from tests.support.s3_proxy import proxied, store_behind

VALUES = numpy.random.default_rng(1).random(1 << 20)
"""8 MiB: more than there is."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no small file system can be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def with_numpy(folder: Path) -> None:
    VALUES.tofile(folder / "values")


def with_arrow(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"x": VALUES}), folder / "table.parquet")


def with_torch(folder: Path) -> None:
    import torch

    torch.save(torch.from_numpy(VALUES), folder / "model.pt")


def with_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.from_numpy(VALUES)}, folder / "model.safetensors")


def with_a_distributed_checkpoint(folder: Path) -> None:
    import torch
    from torch.distributed import checkpoint

    checkpoint.save({"x": torch.from_numpy(VALUES)}, checkpoint_id=str(folder / "checkpoint"), no_dist=True)


def with_zstd(folder: Path) -> None:
    import zstandard

    with zstandard.open(folder / "text.zst", "wb") as stream:
        stream.write(VALUES.tobytes())


def with_sqlite(folder: Path) -> None:
    database = sqlite3.connect(folder / "x.db")
    database.execute("create table t (x)")
    database.executemany("insert into t values (?)", [(VALUES[:1000].tobytes(),)] * 1000)
    database.commit()


@pytest.mark.parametrize(
    "write",
    [with_numpy, with_arrow, with_torch, with_safetensors, with_a_distributed_checkpoint, with_zstd, with_sqlite],
)
def test_every_librarys_error_is_told_as_the_full_disk_that_it_is(disk: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(BaseException) as caught:
        write(disk)
    exit_class, message = classify(caught.value, disk)
    assert exit_class is ExitClass.INFRA, repr(caught.value)
    assert "no space left on the disk that holds" in message
    assert f"(mounted at {disk}, " in message
    assert " of 2,097,152 bytes free)" in message
    assert "\n" not in message


def test_an_error_behind_other_errors_is_found() -> None:
    def fail() -> None:
        try:
            try:
                raise OSError(28, "No space left on device", "/some/file")
            except OSError as error:
                raise RuntimeError("the writer failed") from error
        except RuntimeError:
            raise KeyError("state") from None  # its context is kept

    with pytest.raises(KeyError) as caught:
        fail()
    assert classify(caught.value, Path("/"))[0] is ExitClass.INFRA
    group = ExceptionGroup("workers", [ValueError("x"), OSError(122, "Disk quota exceeded")])
    assert classify(group, Path("/"))[0] is ExitClass.INFRA


def test_a_write_that_came_short_on_a_disk_with_room_stays_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.core.failures.nearly_full", lambda where: False)
    assert classify(OSError("1048576 requested and 262144 written"), tmp_path)[0] is ExitClass.BUG


def test_a_stage_on_a_full_disk_says_so_though_its_folder_is_removed(
    disk: Path, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the folder is gone the disk has room again, and NumPy's error names no reason."""
    from stages.probe_source import run as stage

    monkeypatch.setenv("MOXIN_SCRATCH", str(disk / "scratch"))
    monkeypatch.setattr(stage, "run", lambda ctx: with_numpy(ctx.output("documents")))
    stopper: Any = SimpleNamespace(context=None, cooperative=False)
    with pytest.raises(InfraError, match=r"no space left on the disk that holds .*, 0 of 2,097,152 bytes free"):
        runtime.run(request_of(ledger.store.address, ledger), Stream(tmp_path / "events").events, stopper)
    assert os.listdir(disk / "scratch") == []


def test_an_input_that_does_not_fit_is_told_so(disk: Path, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(VALUES.tobytes())
    _, digest = ledger.store.upload("big", tmp_path / "big")
    with pytest.raises(InfraError, match=rf"no space left on the disk that holds {disk}"):
        ledger.store.download("big", disk / "big", digest)
    assert os.listdir(disk) == []


def test_a_store_that_fails_on_a_full_disk_is_not_waited_for_and_names_the_disk(
    disk: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded store answers HTTP 500, and nothing else, when the disk of the state folder is full."""
    with pytest.raises(OSError, match="written"):
        with_numpy(disk)
    monkeypatch.setenv("MOXIN_STORE_FOLDER", str(disk))
    with proxied(str(ledger.store.address.endpoint)) as proxy:
        proxy.rule = lambda method, path: "503"
        behind = store_behind(proxy, ledger.store.address, patience=600)
        with pytest.raises(InfraError, match=rf"503.*no space left on the disk that holds {disk} .*free\)"):
            behind.put("x", b"1")
        assert len(proxy.log) == 1
