"""A table in a few parquet files, written as its rows come."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class Parts:
    """part-00000.parquet and so on in a new folder. A file takes rows until their texts are `most_bytes` or more.

    counts: documents and bytes of text written so far.
    """

    def __init__(self, folder: Path, schema: pa.Schema, most_bytes: int):
        folder.mkdir()
        self.folder, self.schema, self.most_bytes = folder, schema, most_bytes
        self.counts: Counter = Counter()
        self.part_bytes = self.parts = 0
        self.writer: pq.ParquetWriter | None = None

    def write(self, rows: list[dict]) -> None:
        if not rows:
            return
        if self.writer is None or self.part_bytes >= self.most_bytes:
            self.close()
            self.writer = pq.ParquetWriter(
                self.folder / f"part-{self.parts:05}.parquet", self.schema, compression="zstd"
            )
            self.parts, self.part_bytes = self.parts + 1, 0
        self.writer.write_table(pa.Table.from_pylist(rows, self.schema))
        size = sum(len(row["text"].encode()) for row in rows)
        self.part_bytes += size
        self.counts.update(documents=len(rows), bytes=size)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
