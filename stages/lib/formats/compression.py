"""Files as people have them: packed or not, and however their text begins.

`unpacked` takes a compressed file apart by its name, or by its first bytes where the name says nothing: gzip (several
members), zstd (several frames, windows up to `WINDOW`), bzip2, xz. `utf8` hands its text on as UTF-8 whatever byte
order mark it begins with. Memory stays bounded whatever the content; a file that is cut or damaged raises `Damaged`, an
error of the stream below passes as it is.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from stages.core.errors import InputError

WINDOW = 1 << 31
"""The largest window of a zstd frame, and dictionary of an xz file, that is taken: bytes of memory. `zstd --long=31`
packs with 2 GiB.
"""
PIECE = 1 << 16

CODECS = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00"}
"""Ending of the name: first bytes."""
OTHERS = {"lz4": b"\x04\x22\x4d\x18", "zip": b"PK\x03\x04", "7z": b"7z\xbc\xaf\x27\x1c", "rar": b"Rar!\x1a\x07"}
"""Ways to pack that nothing here takes apart, by their first bytes."""
OTHER_ENDINGS = (*OTHERS, "z", "lzma", "lzo", "br", "sz", "snappy", "tar", "tgz", "tbz2", "txz")
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Damaged(Exception):
    """A packed file ends too early, or is not what it claims. The message is one line."""


def mark(head: bytes) -> tuple[int, str]:
    """(bytes of the byte order mark that a text begins with, its encoding); (0, 'utf-8') without one."""
    return next(((len(bom), name) for bom, name in MARKS if head.startswith(bom)), (0, "utf-8"))


def decoded(data: bytes) -> str:
    """A whole text, its byte order mark taken away. Raises UnicodeDecodeError."""
    size, encoding = mark(data[:4])
    return data[size:].decode(encoding)


def text_of(path: Path) -> str:
    """The text of a local file, packed or not. Raises OSError, Damaged, InputError, UnicodeDecodeError."""
    with open(path, "rb") as stream, unpacked(stream, path.name) as plain:
        return decoded(plain.read())


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a local text file, packed or not, but for empty ones. Raises as `text_of`."""
    with open(path, "rb") as stream:
        for line in utf8(unpacked(stream, path.name)):
            if text := line.decode("utf-8").strip():
                yield text


def codec(name: str, head: bytes) -> str | None:
    """How a file is packed: an ending of `CODECS`, None when it is not. Raises InputError or Damaged for a way that is
    unknown here.
    """
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if ending in OTHER_ENDINGS:
        raise InputError(
            f"{name} is packed as .{ending}, which is not taken apart here: pack it as .zst, .gz, .bz2 or .xz, or not"
            " at all"
        )
    if ending in CODECS:
        return ending
    for other, magic in OTHERS.items():
        if head.startswith(magic):
            raise Damaged(f"it is packed as .{other}, which is not taken apart here")
    return next((known for known, magic in CODECS.items() if head.startswith(magic)), None)


def unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    """The content of a packed file, or the stream itself (from its beginning) when it is not packed.

    name: its ending says how it is packed; else the first bytes do. stream: must have `peek`, or be seekable.
    """
    peek = getattr(stream, "peek", None)
    head = bytes(peek(8)[:8]) if peek else stream.read(8)
    if not peek:
        stream.seek(0)
    kind = codec(name, head)
    if kind is None:
        return stream
    opener: dict[str, Callable[[IO[bytes]], Any]] = {
        "gz": lambda raw: gzip.GzipFile(fileobj=raw),
        "bz2": bz2.BZ2File,
        "xz": _Xz,
        "zst": _Zstd,
    }
    return cast("IO[bytes]", io.BufferedReader(_Unpacked(opener[kind](stream), kind), PIECE))


class _Unpacked(io.RawIOBase):
    """Gives the errors of four libraries one name."""

    def __init__(self, inner: Any, kind: str) -> None:
        self._inner, self._kind = inner, kind

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise Damaged(str(error)) from error
        except OSError as error:
            if error.errno is not None:
                raise  # the disk, not the content
            raise Damaged(str(error)) from error
        buffer[: len(data)] = data
        return len(data)


class _Xz:
    """xz streams one after another, in bounded memory (lzma.LZMAFile cannot be given a bound)."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._machine, self._left = stream, None, b""

    def read(self, size: int) -> bytes:
        while True:
            if self._machine is None or self._machine.eof:
                rest = (self._machine.unused_data if self._machine else b"") or self._stream.read(PIECE)
                while rest and not rest.strip(b"\0"):  # padding between streams
                    rest = self._stream.read(PIECE)
                if not rest:
                    return b""
                rest = rest.lstrip(b"\0") if self._machine else rest
                self._machine, self._left = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW), rest
            if self._machine.needs_input and not self._left and not (piece := self._stream.read(PIECE)):
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if self._machine.needs_input and not self._left:
                self._left = piece
            data, self._left = self._machine.decompress(self._left, size), b""
            if data:
                return data


class _Zstd:
    """zstd frames one after another. The library takes a frame that is cut for the end of the file: `_Frames` knows
    better.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._frames = _Frames(stream)
        self._reader = zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(
            cast(Any, self._frames), read_size=PIECE, read_across_frames=True
        )

    def read(self, size: int) -> bytes:
        try:
            data = self._reader.read(size)
        except self._error as error:
            raise Damaged(str(error)) from error
        if not data and not self._frames.whole:
            raise Damaged("the file ends inside a zstd frame")
        return data


class _Frames:
    """Passes zstd frames through, following their blocks (RFC 8878, 3.1): says whether they end whole, and refuses too
    large a window.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._held, self._skip = stream, bytearray(), 0
        self._checksum = 0
        self._next: Callable[[], bool] = self._frame

    @property
    def whole(self) -> bool:
        """Whether all that was read are whole frames."""
        return not self._held and not self._skip and self._next == self._frame

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._held += data
        while self._held:
            passed = min(self._skip, len(self._held))
            del self._held[:passed]
            self._skip -= passed
            if self._skip or not self._held or not self._next():
                break
        return data

    def _take(self, size: int) -> bytes | None:
        if len(self._held) < size:
            return None
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def _frame(self) -> bool:
        if len(self._held) < 4:
            return False
        magic = int.from_bytes(self._held[:4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a frame to be skipped
            if (head := self._take(8)) is None:
                return False
            self._skip = int.from_bytes(head[4:], "little")
            return True
        if magic != 0xFD2FB528:
            raise Damaged("no zstd frame where one should begin")
        if len(self._held) < 5:
            return False
        flags = self._held[4]
        single = flags >> 5 & 1
        size = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        if (head := self._take(size)) is None:
            return False
        content = head[size - (single, 2, 4, 8)[flags >> 6] :]
        if single:
            window = int.from_bytes(content, "little") + (256 if len(content) == 2 else 0)
        else:
            window = (1 << 10 + (head[5] >> 3)) * (8 + (head[5] & 7)) // 8
        if window > WINDOW and not single:
            raise Damaged(
                f"a zstd frame has a window of {window >> 20} MiB; {WINDOW >> 20} MiB are the most that is taken"
            )
        self._checksum, self._next = flags >> 2 & 1, self._block
        return True

    def _block(self) -> bool:
        if (head := self._take(3)) is None:
            return False
        value = int.from_bytes(head, "little")
        last, kind, size = value & 1, value >> 1 & 3, value >> 3
        self._skip = (1 if kind == 1 else size) + (4 * self._checksum if last else 0)
        if last:
            self._next = self._frame
        return True


def utf8(stream: IO[bytes]) -> IO[bytes]:
    """A text as UTF-8 without a byte order mark. What no encoding could have written comes as bytes that are no UTF-8,
    in its line.
    """
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream), PIECE)
    head = bytes(buffered.peek(4)[:4])
    size, encoding = mark(head)
    buffered.read(size)
    return (
        buffered
        if encoding == "utf-8"
        else cast("IO[bytes]", io.BufferedReader(_Transcoded(buffered, encoding), PIECE))
    )


class _Transcoded(io.RawIOBase):
    """UTF-16 or UTF-32 as UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream, self._decoder, self._left, self._ended = (
            stream,
            codecs.getincrementaldecoder(encoding)("surrogatepass"),
            b"",
            False,
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and not self._ended:
            data = self._stream.read(PIECE)
            self._ended = not data
            try:
                self._left = self._decoder.decode(data, self._ended).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                self._left, self._ended = (
                    b"\xff",
                    True,
                )  # half a character, or a number that is none: the rest cannot be told apart
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size
