"""Common Crawl's S3 bucket, or another with the same paths, through Arrow's S3 client.

It has the methods of HttpClient and raises the same errors.
https://arrow.apache.org/docs/python/filesystems.html
"""

import contextlib
import os
import re
from collections.abc import Iterator

from pyarrow import NativeFile, fs

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.download.http_client import Body, Version, validator
from crawl2cart.crawl.download.retry import TransientError

PIECE_BYTES = 1 << 20
COMMON_CRAWL_REGION = "us-east-1"
ACCESS_ERRORS = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|MISSING_AUTH|TOKEN|HTTP status 40[0134]"
    r"|[Cc]redential"
)


class S3Client:
    """Reads files below s3://bucket/, with credentials and region from where AWS's tools take them.

    read_timeout: seconds after which a silent request is given up. AWS_ENDPOINT_URL in the
    environment names another server.
    """

    def __init__(self, base: str, read_timeout: float):
        self.base = base.removeprefix("s3://").rstrip("/") + "/"
        self._files = fs.S3FileSystem(
            region=COMMON_CRAWL_REGION if self.base == "commoncrawl/" else None,
            endpoint_override=os.environ.get("AWS_ENDPOINT_URL"),
            request_timeout=read_timeout,
            connect_timeout=read_timeout,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # our Retry repeats
        )

    def version(self, name: str) -> Version:
        """Ask for a file's size and validator without downloading it."""
        with self._open(name) as file:
            return version_of(file)

    @contextlib.contextmanager
    def open(self, name: str, start: int, version: Version | None) -> Iterator[Body]:
        """Download a file from byte `start` on, or from byte 0 if it is no longer `version`."""
        with self._open(name) as file:
            current = version_of(file)
            start = start if current == version else 0
            file.seek(start)
            yield Body(current, start, self._pieces(file, name))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Download `length` bytes of a file from byte `start` on; the caller checks the content."""
        with self._open(name) as file, s3_errors(self.base + name):
            content = file.read_at(length, start)
        if len(content) != length:
            raise TransientError("cut", f"{len(content):,} bytes came instead of {length:,}")
        return content

    def close(self) -> None:
        """Do nothing: Arrow gives no handle on a request, and `read_timeout` ends it."""

    def _open(self, name: str) -> NativeFile:
        with s3_errors(self.base + name):
            return self._files.open_input_file(self.base + name)

    def _pieces(self, file: NativeFile, name: str) -> Iterator[bytes]:
        while True:
            with s3_errors(self.base + name):
                piece = file.read(PIECE_BYTES)
            if not piece:
                return
            yield piece


def version_of(file: NativeFile) -> Version:
    headers = {name: value.decode() for name, value in file.metadata().items()}
    return Version(file.size(), validator(headers))


@contextlib.contextmanager
def s3_errors(path: str) -> Iterator[None]:
    """Turn what Arrow raises about S3 into a TransientError or a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"s3://{path}: there is no such file. Check download.crawl. "
            "`python -m stages.download --latest` names the newest crawl."
        ) from error
    except OSError as error:
        if ACCESS_ERRORS.search(str(error)):
            raise UserError(
                f"s3://{path}: AWS refused ({error}). Common Crawl's bucket needs an account: set "
                "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Or use "
                "download.base=https://data.commoncrawl.org/, which needs none."
            ) from error
        raise TransientError("s3", f"S3 did not answer ({error})") from error
