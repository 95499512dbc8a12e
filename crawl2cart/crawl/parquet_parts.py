"""Write a table to a few parquet files, row by row as it comes."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class PartWriter:
    """Writes part-00000.parquet and so on into a new folder.

    A file takes rows until their texts are `part_bytes` or more.
    counts: documents and bytes of text (UTF-8) written so far.
    """

    def __init__(self, folder: Path, schema: pa.Schema, part_bytes: int):
        folder.mkdir()
        self.folder, self.schema, self.part_bytes = folder, schema, part_bytes
        self.counts: Counter[str] = Counter()
        self.bytes_in_part = self.parts = 0
        self.writer: pq.ParquetWriter | None = None

    def write(self, rows: list[dict]) -> None:
        """Append rows of the schema; each has a `text`."""
        if not rows:
            return
        if self.writer is None or self.bytes_in_part >= self.part_bytes:
            self.close()
            path = self.folder / f"part-{self.parts:05}.parquet"
            self.writer = pq.ParquetWriter(path, self.schema, compression="zstd")
            self.parts, self.bytes_in_part = self.parts + 1, 0
        self.writer.write_table(pa.Table.from_pylist(rows, self.schema))
        size = sum(len(row["text"].encode()) for row in rows)
        self.bytes_in_part += size
        self.counts.update(documents=len(rows), bytes=size)

    def close(self) -> None:
        """Finish the last file."""
        if self.writer is not None:
            self.writer.close()
