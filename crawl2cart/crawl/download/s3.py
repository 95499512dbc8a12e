"""Common Crawl's bucket, or another with the same paths, through Arrow's S3 client.

It answers as `crawl2cart.crawl.download.http_client` does: what was asked for, or a Fault, or a UserError.
https://arrow.apache.org/docs/python/filesystems.html
"""

import contextlib
import os
import re
from collections.abc import Iterator

from pyarrow import NativeFile, fs

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.download.http_client import Body, Version, mark
from crawl2cart.crawl.download.retry import Fault

PIECE = 1 << 20
COMMON_CRAWL_REGION = "us-east-1"


class S3:
    """Files below s3://bucket/. Credentials and region are found as the AWS tools find them; AWS_ENDPOINT_URL is heeded."""

    def __init__(self, base: str, read_timeout: float):
        self.base = base.removeprefix("s3://").rstrip("/") + "/"
        region = COMMON_CRAWL_REGION if self.base == "commoncrawl/" else None
        self.files = fs.S3FileSystem(
            region=region,
            endpoint_override=os.environ.get("AWS_ENDPOINT_URL"),
            request_timeout=read_timeout,
            connect_timeout=read_timeout,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )  # crawl2cart.crawl.download.retry repeats

    def version(self, name: str) -> Version:
        with self._file(name) as file:
            return self._version(file)

    @contextlib.contextmanager
    def open(self, name: str, start: int, version: Version | None) -> Iterator[Body]:
        with self._file(name) as file:
            now = self._version(file)
            start = start if now == version else 0
            file.seek(start)
            yield Body(now, start, self._pieces(file, name))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        with self._file(name) as file, s3_in_words(self.base + name):
            content = file.read_at(length, start)
        if len(content) != length:
            raise Fault("cut", f"{len(content):,} bytes came instead of {length:,}")
        return content

    def close(self) -> None:
        """Nothing: Arrow gives no handle on a request, and `read_timeout` ends it."""

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[NativeFile]:
        with s3_in_words(self.base + name):
            file = self.files.open_input_file(self.base + name)
        with file:
            yield file

    def _version(self, file: NativeFile) -> Version:
        headers = {name: value.decode() for name, value in file.metadata().items()}
        return Version(file.size(), mark(headers))

    def _pieces(self, file: NativeFile, name: str) -> Iterator[bytes]:
        while True:
            with s3_in_words(self.base + name):
                piece = file.read(PIECE)
            if not piece:
                return
            yield piece


@contextlib.contextmanager
def s3_in_words(name: str) -> Iterator[None]:
    """Sorts what Arrow says about S3 into what may be asked again and what may not."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"s3://{name}: there is no such file. Is download.crawl the name of a crawl? "
            "`python -m stages.download --latest` names the newest."
        ) from error
    except OSError as error:
        said = str(error)
        if re.search(
            r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|MISSING_AUTH|TOKEN|HTTP status 40[0134]|[Cc]redential",
            said,
        ):
            raise UserError(
                f"s3://{name}: AWS refused ({said}). Common Crawl's bucket wants an account: set AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use download.base=https://data.commoncrawl.org/, "
                "which wants none."
            ) from error
        raise Fault("s3", f"S3 did not answer ({said})") from error
