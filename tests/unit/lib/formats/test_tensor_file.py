"""`stages.lib.formats.tensor_file`: headers of safetensors are read as the format's own library reads them, and no
header leads outside its file.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from stages.lib.formats.tensor_file import BITS, HEADER_BYTES, Header, read_header

WHOLE = save(
    {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros(5, np.int8), "empty": np.zeros((0, 4), np.int64)},
    {"format": "pt"},
)


def header_of(data: bytes) -> Header:
    return read_header(io.BytesIO(data), len(data))


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def row(start: int, end: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def test_what_the_library_wrote() -> None:
    header = header_of(WHOLE)
    assert header.metadata == {"format": "pt"}
    assert {name: (t.dtype, t.shape) for name, t in header.tensors.items()} == {
        "a": ("I8", (5,)), "b": ("F32", (2, 3)), "empty": ("I64", (0, 4)),
    }  # fmt: skip
    tensor = header.tensors["b"]
    assert tensor.size == 24 == 4 * tensor.elements
    assert np.frombuffer(WHOLE[tensor.start : tensor.end], np.float32).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header would have 0 bytes"),
        (packed({}, length=1 << 63), "header would have"),
        (packed({}, length=3), "header would have 3 bytes"),
        (packed({"a": row(0, 4)}, b"123"), "has [0-9]+ bytes, its header tells of"),
        (packed({"a": row(0, 4)}, b"12345"), "has [0-9]+ bytes, its header tells of"),
        (packed({"a": row(1, 4)}, b"1234"), "tensor a does not lie"),
        (packed({"a": row(0, 4), "b": row(2, 6)}, b"123456"), "tensor b does not lie"),
        (packed({"a": row(0, 2), "b": row(3, 6)}, b"123456"), "tensor b does not lie"),
        (packed({"a": row(0, 4, shape=[5])}, b"1234"), "tensor a does not lie"),
        (packed({"a": row(0, 4, shape=[-2, -2])}, b"1234"), "natural numbers"),
        (packed({"a": row(0, 4, shape=[4.0])}, b"1234"), "natural numbers"),
        (packed({"a": row(0, 1, shape=[True])}, b"1"), "natural numbers"),
        (packed({"a": row(0, 4, shape="4")}, b"1234"), "natural numbers"),
        (packed({"a": row(0, 4, "F99")}, b"1234"), "unknown type F99"),
        (packed({"a": {"dtype": "U8", "shape": [4]}}, b"1234"), "data_offsets"),
        (packed(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'), "twice"),
        (packed({"__metadata__": {"a": 1}}), "more than strings"),
        (packed([]), "cannot be read"),
        (packed(b"[" * 9999), "cannot be read"),
        (packed(b"{\xff}"), "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        header_of(data)


def test_a_header_beyond_the_formats_limit_is_not_read() -> None:
    """Of a file that may well be that large."""
    with pytest.raises(ValueError, match="header would have"):
        read_header(io.BytesIO(packed({}, length=HEADER_BYTES + 1)), 1 << 40)
    with pytest.raises(ValueError, match="ends within its header"):
        read_header(io.BytesIO(packed({}, length=HEADER_BYTES)), 1 << 40)


def lies_inside(data: bytes, header: Header) -> None:
    """Every tensor lies within the file, holds what its shape says, and none touches another."""
    rows = sorted((t.start, t.end) for t in header.tensors.values())
    assert all(8 <= a <= b <= len(data) for a, b in rows)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(rows))
    assert all(8 * t.size == t.elements * BITS[t.dtype] for t in header.tensors.values())


@given(
    st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.sampled_from(b'0123456789-,.[]{}":eUIF \x00\xff')), max_size=4
    )
)
@example([])
def test_what_is_taken_the_library_takes_too(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, byte in changes:
        data[at] = byte
    try:
        header = header_of(bytes(data))
    except ValueError:
        return
    lies_inside(bytes(data), header)
    theirs = dict(safetensors.deserialize(bytes(data)))
    assert {name: (t["dtype"], tuple(t["shape"])) for name, t in theirs.items()} == {
        name: (t.dtype, t.shape) for name, t in header.tensors.items()
    }


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from([*BITS, "F99", 3]),
                "shape": st.lists(st.integers(-1, 4), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
            }
        ),
        max_size=3,
    ),
    st.integers(0, 40),
)
def test_no_header_leads_outside_its_file(rows: dict[str, Any], size: int) -> None:
    data = packed(rows, bytes(size))
    with contextlib.suppress(ValueError):
        lies_inside(data, header_of(data))
