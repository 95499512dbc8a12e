"""Find where each record of a WARC or WET file really ends, in damaged files too.

Readers of intact files stop at the first broken gzip member, and silently follow a wrong
Content-Length into the next record. Here a length is believed only if a record, a gzip member or
the end of the file follows. Otherwise, and behind broken gzip, reading goes on at the next record.
ISO 28500:2017, https://iipc.github.io/warc-specifications/
"""

import mmap
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from fastwarc.stream_io import ZstdReader

GZIP = b"\x1f\x8b\x08"
# A zstd frame, and the dictionary frame at the start of a .warc.zst.
ZSTD = (b"\x28\xb5\x2f\xfd", b"\x5d\x2a\x4d\x18")
START = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n(?=[A-Za-z-]+[ \t]*:)")
START_OF_LINE = re.compile(rb"\n" + START.pattern)
MAX_START_BYTES = 32
BLANK_LINE = re.compile(rb"\r?\n\r?\n")
MAX_HEADER_BYTES = 1 << 16
# Larger records are dropped: no page is so large, and a video must not fill the memory.
MAX_RECORD_BYTES = 64 << 20
UNPACKED_BLOCK = 1 << 20  # bytes unpacked at a time, so that a zip bomb cannot fill the memory
INPUT_BLOCK = 1 << 16


class Event(Enum):
    """A mark between the unpacked bytes of a file."""

    MEMBER = auto()  # a gzip member starts here, perhaps with a record
    DAMAGED = auto()  # bytes are missing here; the record before is broken
    CUT = auto()  # the file ends in the middle of a member


@dataclass(frozen=True)
class RawRecord:
    """One record of a file. headers: by lower-case name. flaw: what was wrong with it, or ""."""

    headers: dict[str, str]
    block: bytes
    flaw: str


def count_dropped(counts: Counter[str], reason: str) -> None:
    counts["dropped"] += 1
    counts[f"dropped.{reason}"] += 1


# ---- from the file to its unpacked bytes ----


def unpack(path: Path) -> Iterator[bytes | Event]:
    """Yield the unpacked bytes of a file in pieces, with a mark wherever something else happens."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return
        head = file.read(4)
        if head in ZSTD:
            file.seek(0)
            yield from unpack_zstd(file)
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as packed:
            if head[:3] == GZIP:
                yield from unpack_gzip(packed)
            else:
                for start in range(0, len(packed), INPUT_BLOCK):
                    yield packed[start : start + INPUT_BLOCK]


def unpack_zstd(file) -> Iterator[bytes | Event]:
    """Unpack a zstd file up to its first damage; zstd has no mark from which to go on."""
    reader = ZstdReader(file)
    try:
        while piece := reader.read(UNPACKED_BLOCK):
            yield piece
    except OSError as error:
        is_cut = "end of file" in str(error) or "incomplete" in str(error)
        yield Event.CUT if is_cut else Event.DAMAGED


def unpack_gzip(packed: mmap.mmap) -> Iterator[bytes | Event]:
    """Unpack the members of a gzip file (RFC 1952).

    A broken member is left at its first error. Reading goes on at the next member that can be
    unpacked and begins with a record.
    """
    position = 0
    while position < len(packed):
        yield Event.MEMBER
        unpacker, read_to = zlib.decompressobj(zlib.MAX_WBITS | 16), position
        try:
            while not unpacker.eof and read_to < len(packed):
                block = packed[read_to : read_to + INPUT_BLOCK]
                read_to += len(block)
                while block and not unpacker.eof:
                    yield unpacker.decompress(block, UNPACKED_BLOCK)
                    block = unpacker.unconsumed_tail
        except zlib.error:
            following = next_member(packed, position + 1)
        else:
            if unpacker.eof:
                position = after_padding(packed, read_to - len(unpacker.unused_data))
                continue
            # Bit rot can make a member seem to last to the end of the file, with others inside it.
            following = next_member(packed, position + 1)
            if following is None:
                yield Event.CUT
                return
        yield Event.DAMAGED
        if following is None:
            return
        position = following


def after_padding(packed: mmap.mmap, position: int) -> int:
    """Return the position behind zero bytes, with which tapes and some writers pad a file."""
    while packed[position : position + 1] == b"\0":
        position += 1
    return position


def next_member(packed: mmap.mmap, position: int) -> int | None:
    """Return where the next gzip member that begins with a record starts, or None.

    The three bytes of the gzip mark alone occur by chance once in 16 MiB.
    """
    while (position := packed.find(GZIP, position)) >= 0:
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(
                packed[position : position + 1024], MAX_START_BYTES
            )
        except zlib.error:
            start = b""
        if start.startswith(b"WARC/"):
            return position
        position += 1
    return None


# ---- from unpacked bytes to records ----


class Window:
    """The unpacked bytes of a file from the first unread one to the next gap.

    data: bytes unpacked and not yet read. members: where in data gzip members start.
    gap: the event (DAMAGED or CUT) at the end of data, None if bytes or the end of the file follow.
    """

    def __init__(self, events: Iterator[bytes | Event]):
        self.events = events
        self.data = bytearray()
        self.members: deque[int] = deque()
        self.gap: Event | None = None
        self.at_end = False

    def reach(self, size: int) -> bool:
        """Unpack until data holds `size` bytes; return whether it does."""
        while len(self.data) < size and self.gap is None and not self.at_end:
            match next(self.events, None):
                case None:
                    self.at_end = True
                case Event.MEMBER:
                    self.members.append(len(self.data))
                case Event() as gap:
                    self.gap = gap
                case piece:
                    self.data += piece
        return len(self.data) >= size

    def drop(self, size: int) -> None:
        """Forget the first `size` bytes."""
        del self.data[:size]
        while self.members and self.members[0] < size:
            self.members.popleft()
        self.members = deque(member - size for member in self.members)

    def leave_gap(self) -> None:
        """Forget the bytes before the gap and go on behind it."""
        self.drop(len(self.data))
        self.members.clear()
        self.gap = None

    def is_boundary(self, position: int) -> bool:
        """Tell whether a record can end at `position`.

        Behind its line ends come a record, a gzip member or the end of the file.
        """
        while True:
            self.reach(position + MAX_START_BYTES)
            if position in self.members:
                return True
            if self.data[position : position + 1] not in (b"\r", b"\n"):
                break
            position += 1
        if position >= len(self.data):
            return self.gap is not Event.DAMAGED
        return bool(START.match(self.data, position))

    def next_start(self, position: int, furthest: int) -> int | None:
        """Return where the next record starts between `position` and `furthest`, or None."""
        while True:
            self.reach(position + INPUT_BLOCK)
            match = START_OF_LINE.search(self.data, max(0, position - 1))
            starts = [match.start() + 1] if match else []
            starts += [
                member
                for member in self.members
                if member >= position and START.match(self.data, member)
            ][:1]
            if starts:
                return min(starts)
            position = max(position, len(self.data) - MAX_START_BYTES)
            if position >= furthest or not self.reach(len(self.data) + 1):
                return None


def raw_records(path: Path, counts: Counter[str]) -> Iterator[RawRecord]:
    """Yield the records of a file, each block cut where it really ends.

    counts: gains `dropped` and `dropped.<reason>` for what cannot be read.
    """
    window = Window(unpack(path))
    while True:
        while window.reach(1) and window.data[0] in b"\r\n":
            window.drop(len(window.data) - len(window.data.lstrip(b"\r\n")))
        if not window.reach(1):
            if window.gap is Event.DAMAGED:
                count_dropped(counts, "damaged_gzip")
                window.leave_gap()
                continue
            if window.gap is Event.CUT and window.members:
                count_dropped(counts, "cut_short")  # not even its first byte is there
            return
        record, end = next_record(window)
        if isinstance(record, RawRecord):
            yield record
        else:
            count_dropped(counts, record)
        window.drop(end)
        if record == "damaged_gzip":
            window.leave_gap()


def next_record(window: Window) -> tuple[RawRecord | str, int]:
    """Return the record at the start of the window, or why it is dropped; and where it ends."""
    head = next_head(window)
    if head is None:
        start = skip_to_start(window, 1)
        if start is None and window.gap is Event.DAMAGED:
            return "damaged_gzip", len(window.data)
        return "no_header", len(window.data) if start is None else start
    headers = parse_headers(window.data[: head.start()])
    length = headers.get("content-length", "")
    stated = head.end() + min(int(length), MAX_RECORD_BYTES + 1) if length.isdecimal() else None
    fits = stated is not None and stated <= head.end() + MAX_RECORD_BYTES
    if fits and window.reach(stated) and window.is_boundary(stated):
        return RawRecord(headers, bytes(window.data[head.end() : stated]), ""), stated
    start = window.next_start(head.end(), head.end() + MAX_RECORD_BYTES)
    if start is None and len(window.data) > head.end() + MAX_RECORD_BYTES:
        start = skip_to_start(window, head.end())
        return "too_long", len(window.data) if start is None else start
    if start is None and window.gap is Event.DAMAGED:
        return "damaged_gzip", len(window.data)
    end = len(window.data) if start is None else start
    if stated is None:
        return "no_length", end
    flaw = "cut_short" if start is None and stated > end else "wrong_length"
    return RawRecord(headers, without_line_ends(bytes(window.data[head.end() : end])), flaw), end


def next_head(window: Window) -> re.Match | None:
    """Match the header at the start of the window up to its blank line; None if there is none."""
    window.reach(MAX_START_BYTES)
    if not START.match(window.data):
        return None
    while not (head := BLANK_LINE.search(window.data, 0, MAX_HEADER_BYTES)):
        if len(window.data) >= MAX_HEADER_BYTES or not window.reach(len(window.data) + 1):
            return None
    return head


def skip_to_start(window: Window, position: int) -> int | None:
    """Forget bytes until a record starts; return where, or None if none does before the gap."""
    while (start := window.next_start(position, position + MAX_RECORD_BYTES)) is None:
        if not window.reach(len(window.data) + 1):
            return None
        window.drop(len(window.data) - MAX_START_BYTES)
        position = 0
    return start


def parse_headers(text: bytes) -> dict[str, str]:
    """Return header fields by lower-case name, the first of equal ones; folded lines are joined."""
    lines = re.sub(rb"\r?\n[ \t]+", b" ", bytes(text)).decode("utf-8", "replace").splitlines()[1:]
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def without_line_ends(block: bytes) -> bytes:
    """Strip the two line ends that close a record."""
    for _ in range(2):
        block = block.removesuffix(b"\n").removesuffix(b"\r")
    return block
