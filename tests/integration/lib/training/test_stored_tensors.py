"""Tensors of a checkpoint read by ranges: each reader gets its part, whatever cut the files, and fetches little
more.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stages.core import reading
from stages.core.artifacts import FileEntry
from stages.core.checkpoints import upload_folder
from stages.core.errors import InputError
from stages.core.ledger import Ledger
from stages.core.store import Store
from stages.core.store_errors import Damaged
from stages.core.testing import local_files
from stages.lib.training import stored_tensors
from stages.lib.training.stored_tensors import Part, StoredTensors, read_headers

MIB = 1 << 20


def write(folder: Path, number: int, pieces: dict[str, tuple[torch.Tensor, tuple[int, ...]]]) -> None:
    """A file as PyTorch's distributed checkpoint writes it. pieces: each with its place in the whole tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: {"saved_offsets": offsets} for name, (_, offsets) in pieces.items()}
    tensors = {name: tensor.contiguous() for name, (tensor, _) in pieces.items()}
    save_file(tensors, folder / f"shard-{number:05d}.safetensors", {"DCP_SHARDING_INFO": json.dumps(places)})


def cut_by_rows(folder: Path, whole: dict[str, torch.Tensor], ranks: int) -> None:
    """As so many data-parallel processes would keep it."""
    for rank in range(ranks):
        pieces = {}
        for name, tensor in whole.items():
            rows = -(-len(tensor) // ranks)
            if rank * rows < len(tensor):
                pieces[name] = tensor[rank * rows : (rank + 1) * rows], (rank * rows, *[0] * (tensor.ndim - 1))
        write(folder, rank, pieces)


def open_tensors(files: Sequence[FileEntry]) -> StoredTensors:
    return StoredTensors(files, read_headers(files))


@pytest.fixture
def fetched(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """What is read from the store: object and bytes of each request."""
    reading.share(ledger.store.address, "test")
    counted: list[tuple[str, int]] = []
    get = Store.get_range

    def counting(self: Store, key: str, start: int, end: int) -> bytes:
        counted.append((key, end - start))
        return get(self, key, start, end)

    monkeypatch.setattr(Store, "get_range", counting)
    yield counted
    for name in (reading.STORE, reading.ATTEMPT):
        monkeypatch.delenv(name)


def test_a_process_reads_about_its_own_part(ledger: Ledger, tmp_path: Path, fetched: list[tuple[str, int]]) -> None:
    """Cut by 4: each of 4 reads one file; of 2, two; of 8, half of one."""
    whole = {"weight": torch.randn(2048, 1024), "norm": torch.randn(1024)}
    cut_by_rows(tmp_path, whole, 4)
    files = upload_folder(ledger.store, "checkpoints/x", tmp_path)
    headers = read_headers(files)
    assert sum(count for _, count in fetched) <= 4 * 256 * 1024, "headers alone"
    for readers in (4, 2, 8):
        for rank in range(readers):
            fetched.clear()
            rows = {name: len(tensor) // readers for name, tensor in whole.items()}
            parts = {
                name: Part(torch.empty(rows[name], *tensor.shape[1:]), (rank * rows[name], *[0] * (tensor.ndim - 1)))
                for name, tensor in whole.items()
            }
            StoredTensors(files, headers).read(parts)
            for name, part in parts.items():
                assert torch.equal(part.target, whole[name][rank * rows[name] : (rank + 1) * rows[name]])
            wanted = {files[n].object for n in range(rank * 4 // readers, -(-(rank + 1) * 4 // readers))}
            assert {key for key, _ in fetched} == wanted
            assert sum(count for _, count in fetched) == sum(f.size for f in files if f.object in wanted)


def test_of_a_large_file_the_blocks_are_read_that_are_needed(
    ledger: Ledger, tmp_path: Path, fetched: list[tuple[str, int]]
) -> None:
    whole = torch.arange(12 * MIB, dtype=torch.float32).view(-1, 1024)  # 48 MiB: three blocks and a bit
    write(tmp_path, 0, {"weight": (whole, (0, 0))})
    files = upload_folder(ledger.store, "checkpoints/x", tmp_path)
    tensors = open_tensors(files)
    fetched.clear()
    part = Part(torch.empty(10, 1024), (5000, 0))
    tensors.read({"weight": part})
    assert torch.equal(part.target, whole[5000:5010])
    assert [count for _, count in fetched] == [16 * MIB]


def test_any_part_of_tensors_cut_anyhow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rows and columns, in one and three dimensions, in other kinds of numbers, in slabs of a few rows."""
    monkeypatch.setattr(stored_tensors, "SLAB", 64)
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(12, 10, generator=generator)
    cube = torch.randn(6, 4, 3, generator=generator).to(torch.bfloat16)
    flat, number = torch.randn(17, generator=generator), torch.tensor(3.5)
    cells = list(itertools.product((0, 5), (0, 3)))
    for file, (row, column) in enumerate(cells):
        pieces: Any = {"grid": (grid[row : row + (5, 7)[row > 0], column : column + (3, 7)[column > 0]], (row, column))}
        if file < 2:
            pieces["cube"] = (cube[:, 2 * file : 2 * file + 2], (0, 2 * file, 0))
        if file == 3:
            pieces |= {"flat": (flat, (0,)), "number": (number, ())}
        write(tmp_path, file, pieces)
    tensors = open_tensors(local_files(tmp_path))
    assert tensors.shapes == {"grid": (12, 10), "cube": (6, 4, 3), "flat": (17,), "number": ()}
    filled = {
        "grid": torch.empty(12, 10),
        "cube": torch.empty(6, 4, 3),
        "flat": torch.empty(17),
        "number": torch.empty(()),
    }
    tensors.read(filled)
    assert torch.equal(filled["grid"], grid)
    assert torch.equal(filled["cube"], cube.float())
    assert torch.equal(filled["flat"], flat)
    assert filled["number"] == 3.5
    for top, left in itertools.product(range(0, 12, 5), range(0, 10, 4)):
        part = Part(torch.empty(12 - top, 10 - left), (top, left))
        tensors.read({"grid": part})
        assert torch.equal(part.target, grid[top:, left:])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, 0, {"weight": (torch.zeros(2, 3), (0, 0))})
    tensors = open_tensors(local_files(tmp_path))
    with pytest.raises(InputError, match="holds no tensor bias"):
        tensors.read({"bias": torch.empty(2)})
    with pytest.raises(InputError, match=r"weight has the shape \(2, 3\), not \(3, 2\)"):
        tensors.read({"weight": torch.empty(3, 2)})


@pytest.mark.parametrize(
    "what", ["a digit of a place", "a digit of a shape", "the name of a kind", "the length", "lost"]
)
def test_a_damaged_header_is_damage(ledger: Ledger, tmp_path: Path, fetched: list[tuple[str, int]], what: str) -> None:
    cut_by_rows(tmp_path, {"weight": torch.zeros(8, 4)}, 2)
    files = upload_folder(ledger.store, "checkpoints/x", tmp_path)
    stored = ledger.store.get(files[1].object)
    assert stored is not None
    wrong = {
        "a digit of a place": stored[0].replace(b"[4, 0]", b"[5, 0]"),
        "a digit of a shape": stored[0].replace(b'"shape":[4,4]', b'"shape":[3,4]'),
        "the name of a kind": stored[0].replace(b"F32", b"F36"),
        "the length": b"\xff" + stored[0][1:],
    }
    ledger.store.delete([files[1].object])
    if what in wrong:
        assert wrong[what] != stored[0]
        ledger.store.put(files[1].object, wrong[what])
    with pytest.raises(Damaged):
        open_tensors(files)


def test_damaged_bytes_are_damage(ledger: Ledger, tmp_path: Path, fetched: list[tuple[str, int]]) -> None:
    cut_by_rows(tmp_path, {"weight": torch.zeros(1600, 800)}, 2)
    files: tuple[FileEntry, ...] = upload_folder(ledger.store, "checkpoints/x", tmp_path)
    stored = ledger.store.get(files[1].object)
    assert stored is not None
    ledger.store.put(files[1].object, stored[0][:-3] + b"\x01\x02\x03")
    tensors = open_tensors(files)
    tensors.read({"weight": Part(torch.empty(800, 800), (0, 0))})  # the other half is whole
    with pytest.raises(Damaged, match="CRC32"):
        tensors.read({"weight": Part(torch.empty(1, 800), (800, 0))})
