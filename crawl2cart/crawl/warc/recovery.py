"""The records of a WARC or WET file, each cut where it really ends, also where the world has damaged the file.

Readers of intact files stop at the first broken gzip member, and follow a wrong Content-Length into the next record
without a word. So the frame of each record is found here: a length is believed only if a record, a gzip member or the
end of the file follows it; where it does not hold, or where the gzip is broken, reading goes on at the next
record start. ISO 28500:2017, https://iipc.github.io/warc-specifications/
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
ZSTD = (
    b"\x28\xb5\x2f\xfd",
    b"\x5d\x2a\x4d\x18",
)  # a frame, and the dictionary frame that opens a .warc.zst
START = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n(?=[A-Za-z-]+[ \t]*:)")
START_OF_LINE = re.compile(rb"\n" + START.pattern)
LONGEST_START = 32
BLANK_LINE = re.compile(rb"\r?\n\r?\n")
LONGEST_HEADER = 1 << 16
# A record above this is passed over: a page is never so large, and a video need not be held in memory.
LONGEST_RECORD = 64 << 20
LONGEST_UNPACKING = 1 << 20  # bytes unpacked at a time, so that a zip bomb can not fill the memory
INPUT_BLOCK = 1 << 16


class Event(Enum):
    """What an unpacked file is made of, besides bytes."""

    MEMBER = auto()  # a gzip member starts here, and so may a record
    DAMAGED = auto()  # bytes are missing here; those before are part of something broken
    CUT = auto()  # the file ends in the middle of a member


@dataclass(frozen=True)
class RawRecord:
    """One record as it lies in the file. flaw: what had to be mended, or an empty string."""

    headers: dict[str, str]
    block: bytes
    flaw: str


def lose(counts: Counter, why: str) -> None:
    counts["lost"] += 1
    counts[f"lost.{why}"] += 1


# ---- from the file to its unpacked bytes ----


def unpack(path: Path) -> Iterator[bytes | Event]:
    """The unpacked bytes of a file in pieces, with a mark wherever they do not simply follow each other."""
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
    """What comes out of a zstd file up to its first damage; zstd has no mark to go on from."""
    reader = ZstdReader(file)
    try:
        while piece := reader.read(LONGEST_UNPACKING):
            yield piece
    except OSError as error:
        yield (
            Event.CUT
            if "end of file" in str(error) or "incomplete" in str(error)
            else Event.DAMAGED
        )


def unpack_gzip(packed: mmap.mmap) -> Iterator[bytes | Event]:
    """The members of a gzip file, RFC 1952. A broken one is left at its first error; the next that can be unpacked and
    begins with a record goes on."""
    position = 0
    while position < len(packed):
        yield Event.MEMBER
        unpacker, read_to = zlib.decompressobj(zlib.MAX_WBITS | 16), position
        try:
            while not unpacker.eof and read_to < len(packed):
                block = packed[read_to : read_to + INPUT_BLOCK]
                read_to += len(block)
                while block and not unpacker.eof:
                    yield unpacker.decompress(block, LONGEST_UNPACKING)
                    block = unpacker.unconsumed_tail
        except zlib.error:
            following = next_member(packed, position + 1)
        else:
            if unpacker.eof:
                position = after_padding(packed, read_to - len(unpacker.unused_data))
                continue
            # Bit rot can make a member seem to go on to the end of the file; then whole members stand inside it.
            following = next_member(packed, position + 1)
            if following is None:
                yield Event.CUT
                return
        yield Event.DAMAGED
        if following is None:
            return
        position = following


def after_padding(packed: mmap.mmap, position: int) -> int:
    """The position behind zero bytes, with which tapes and some writers fill a file up."""
    while packed[position : position + 1] == b"\0":
        position += 1
    return position


def next_member(packed: mmap.mmap, position: int) -> int | None:
    """Where the next gzip member with a record at its start begins, or None. The three bytes of its mark alone would
    be found by chance in every 16 MiB."""
    while (position := packed.find(GZIP, position)) >= 0:
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(
                packed[position : position + 1024], LONGEST_START
            )
        except zlib.error:
            start = b""
        if start.startswith(b"WARC/"):
            return position
        position += 1
    return None


# ---- from unpacked bytes to frames ----


class Window:
    """The unpacked bytes of a file from the next unread one on, up to the next gap.

    data: what has been unpacked and not yet used. members: where in data gzip members start.
    gap: the event that keeps more bytes from following, None as long as there are any, or the end of the file.
    """

    def __init__(self, events: Iterator[bytes | Event]):
        self.events = events
        self.data = bytearray()
        self.members: deque[int] = deque()
        self.gap: Event | None = None
        self.at_end = False

    def reach(self, size: int) -> bool:
        """Whether data holds `size` bytes, unpacking as many as that takes."""
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
        del self.data[:size]
        while self.members and self.members[0] < size:
            self.members.popleft()
        self.members = deque(member - size for member in self.members)

    def leave_gap(self) -> None:
        """Gives up what stands before the gap and goes on behind it."""
        self.drop(len(self.data))
        self.members.clear()
        self.gap = None

    def is_boundary(self, position: int) -> bool:
        """Whether a record can end at `position`: behind its line ends come a record, a member or the end."""
        while True:
            self.reach(position + LONGEST_START)
            if position in self.members:
                return True
            if self.data[position : position + 1] not in (b"\r", b"\n"):
                break
            position += 1
        if position >= len(self.data):
            return self.gap is not Event.DAMAGED
        return bool(START.match(self.data, position))

    def next_start(self, position: int, furthest: int) -> int | None:
        """Where the next record starts at or behind `position`, looking no further than `furthest`, or None."""
        while True:
            self.reach(position + INPUT_BLOCK)
            found = START_OF_LINE.search(self.data, max(0, position - 1))
            starts = [found.start() + 1] if found else []
            starts += [
                member
                for member in self.members
                if member >= position and START.match(self.data, member)
            ][:1]
            if starts:
                return min(starts)
            position = max(position, len(self.data) - LONGEST_START)
            if position >= furthest or not self.reach(len(self.data) + 1):
                return None


def frames(path: Path, counts: Counter) -> Iterator[RawRecord]:
    """The records of a file, each with its block cut where it really ends. Counts what is lost."""
    window = Window(unpack(path))
    while True:
        while window.reach(1) and window.data[0] in b"\r\n":
            window.drop(len(window.data) - len(window.data.lstrip(b"\r\n")))
        if not window.reach(1):
            if window.gap is Event.DAMAGED:
                lose(counts, "damaged_gzip")
                window.leave_gap()
                continue
            if window.gap is Event.CUT and window.members:
                lose(counts, "cut_short")  # its first byte is not there
            return
        found, end = next_frame(window)
        if isinstance(found, RawRecord):
            yield found
        else:
            lose(counts, found)
        window.drop(end)
        if found == "damaged_gzip":
            window.leave_gap()


def next_frame(window: Window) -> tuple[RawRecord | str, int]:
    """The record at the start of the window, or why it is lost; and where in the window what follows it starts."""
    head = next_head(window)
    if head is None:
        start = skip_to_start(window, 1)
        if start is None and window.gap is Event.DAMAGED:
            return "damaged_gzip", len(window.data)
        return "no_header", len(window.data) if start is None else start
    headers = parse_headers(window.data[: head.start()])
    length = headers.get("content-length", "")
    stated = head.end() + min(int(length), LONGEST_RECORD + 1) if length.isdecimal() else None
    fits = stated is not None and stated <= head.end() + LONGEST_RECORD
    if fits and window.reach(stated) and window.is_boundary(stated):
        return RawRecord(headers, bytes(window.data[head.end() : stated]), ""), stated
    start = window.next_start(head.end(), head.end() + LONGEST_RECORD)
    if start is None and len(window.data) > head.end() + LONGEST_RECORD:
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
    """The header at the start of the window up to its blank line, or None if there is none."""
    window.reach(LONGEST_START)
    if not START.match(window.data):
        return None
    while not (head := BLANK_LINE.search(window.data, 0, LONGEST_HEADER)):
        if len(window.data) >= LONGEST_HEADER or not window.reach(len(window.data) + 1):
            return None
    return head


def skip_to_start(window: Window, position: int) -> int | None:
    """Drops bytes until a record starts in the window, and returns where; None if none does before the next gap."""
    while (start := window.next_start(position, position + LONGEST_RECORD)) is None:
        if not window.reach(len(window.data) + 1):
            return None
        window.drop(len(window.data) - LONGEST_START)
        position = 0
    return start


def parse_headers(text: bytes) -> dict[str, str]:
    """Header fields by lower-case name, the first of equal ones; a folded line is joined to the one before."""
    lines = re.sub(rb"\r?\n[ \t]+", b" ", bytes(text)).decode("utf-8", "replace").splitlines()[1:]
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def without_line_ends(block: bytes) -> bytes:
    """The block without the two line ends that close a record."""
    for _ in range(2):
        block = block.removesuffix(b"\n").removesuffix(b"\r")
    return block
