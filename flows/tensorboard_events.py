"""Live metrics as TensorBoard event files: `<home>/tensorboard/<profile>/<node>/`, written while a node trains.

Scalars alone, so the few fields of TensorFlow's `Event` message are encoded here: tensorboardX and TensorBoard's own
writer import torch or TensorFlow where they are installed, which the control plane must not. The files are byte for
byte what those libraries write (tests/unit/flows/test_tensorboard_events.py).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

NO_MORE_OF_THIS_ATTEMPT = ("running", "done", "cached", "failed", "stopped", "skipped")
"""States after which no attempt that was there sends metrics. Between two attempts of a run nothing but the next one's
`running` is told.
"""
_NUMBERS = itertools.count()
ROWS = 100_000
"""Rows that a file gets all of; of the next twice as many every second, of the next four times as many every fourth:
TensorBoard draws a thousand points, and reads all of the file for them. Those with a held-out value are all written.
"""


def _crc_table() -> list[int]:
    table: list[int] = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """The checksum of the TFRecord format: CRC-32C (Castagnoli), rotated by 15 bits and shifted by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record(message: bytes) -> bytes:
    """One record of a TFRecord file: length, its checksum, the message, its checksum; numbers are little-endian."""
    length = struct.pack("<Q", len(message))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, message))
    return length + next(checksums) + message + next(checksums)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _event(wall_time: float, step: int, content: bytes) -> bytes:
    """An `Event` message: wall_time = 1, step = 2 (left out at 0, as proto3 does), then one more field."""
    return b"\x09" + struct.pack("<d", wall_time) + (b"\x10" + _varint(step) if step else b"") + content


def version_event(wall_time: float) -> bytes:
    """The first event of a file: Event.file_version = 3."""
    return _event(wall_time, 0, _bytes_field(3, b"brain.Event:2"))


def start_event(wall_time: float, step: int) -> bytes:
    """The start of an attempt at a step: a reader forgets what earlier files of the folder say from there on.

    Event.session_log = 7, SessionLog.status = 1, START = 1.
    """
    return _event(wall_time, step, _bytes_field(7, b"\x08\x01"))


def scalars_event(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """The scalars of one step: Event.summary = 5, Summary.value = 1, Value.tag = 1, Value.simple_value = 2 (float32;
    what does not fit becomes infinite).
    """
    summary = b"".join(
        _bytes_field(1, _bytes_field(1, tag.encode()) + b"\x15" + struct.pack("<f", ctypes.c_float(value).value))
        for tag, value in values.items()
    )
    return _event(wall_time, step, _bytes_field(5, summary))


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of a metric event's values that are numbers."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


class TensorBoardObserver:
    """Writes the metric events of every node of a run, each node into a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """folder: of the profile; TensorBoard shows each folder in it as one run."""
        self._folder = folder
        self._files: dict[str, RawIOBase] = {}
        self._counts: dict[str, int] = {}
        """Rows of the file that is open."""

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        """Write a metric event. Raises OSError, which the dispatcher counts and tells of once."""
        if event["event"] == "state" and event["state"] in NO_MORE_OF_THIS_ATTEMPT:
            if file := self._files.pop(node, None):
                file.close()
        elif event["event"] == "metric":
            values, at, step = scalars(event["values"]), time.time(), int(event["step"])
            file = self._files.get(node) or self._open(node, at, step)
            self._counts[node] = count = self._counts[node] + 1
            every = 1 << ((count + ROWS) // ROWS).bit_length() - 1
            if count % every and not any(name.startswith("val_") for name in values):
                return
            file.write(record(scalars_event(at, step, values)))

    def _open(self, node: str, at: float, step: int) -> RawIOBase:
        """A new file for an attempt that begins at a step. Readers take the files of a folder in the order of names."""
        name = f"events.out.tfevents.{int(at):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        path = self._folder / node / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._counts[node] = 0
        file = self._files[node] = open(path, "wb", buffering=0)  # noqa: SIM115 - closed with the attempt
        file.write(record(version_event(at)) + record(start_event(at, step)))
        return file
