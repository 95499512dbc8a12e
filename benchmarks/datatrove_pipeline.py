"""Run datatrove's own pipeline from WARC to texts without copies, one task at a time.

    python datatrove_pipeline.py lid.176.ftz

benchmarks/filter.py runs it with an environment that has datatrove, in a folder with raw/*.warc.gz.
Its language filter would download lid.176.bin (131 MB); it gets the model's compressed form.
"""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LanguageFilter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils import lid
from datatrove.utils.hashing import HashConfig

# The default, 1 s of elapsed time, drops pages when other programs run at the same time.
SECONDS_PER_PAGE = 60


def run(name: str, *steps: object) -> None:
    LocalPipelineExecutor(
        pipeline=list(steps), tasks=1, workers=1, logging_dir=f"logs/{name}"
    ).run()


if __name__ == "__main__":
    model = Path(sys.argv[1])
    lid.cached_asset_path_or_download = lambda *_, **__: str(model)
    config = MinhashConfig(
        n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64)
    )
    run(
        "filter",
        WarcReader("raw"),
        Trafilatura(favour_precision=True, timeout=SECONDS_PER_PAGE),
        LanguageFilter("en"),
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        JsonlWriter("filtered"),
    )
    run("signatures", JsonlReader("filtered"), MinhashDedupSignature("signatures", config))
    LocalPipelineExecutor(
        pipeline=[MinhashDedupBuckets("signatures", "buckets", config=config)],
        tasks=config.num_buckets,
        workers=1,
        logging_dir="logs/buckets",
    ).run()
    run("clusters", MinhashDedupCluster("buckets", "remove", config=config))
    run("last", JsonlReader("filtered"), MinhashDedupFilter("remove"), JsonlWriter("kept"))
