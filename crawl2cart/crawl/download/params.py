"""The parameters of `download`; params.yaml says what each does."""

import re
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from crawl2cart.core.params import Count, NotNegative, Positive, Section


def check_files(value: object) -> int | float | str:
    """Check `download.files`: a number, a range such as "100-119", a share of all, or "profile"."""
    match value:
        case bool():
            pass
        case int() if value >= 1:
            return value
        case float() if 0 < value < 1:
            return value
        case "profile":
            return value
        case str() if match := re.fullmatch(r"(\d+)-(\d+)", value):
            if int(match[1]) <= int(match[2]):
                return value
    raise ValueError(
        "should be a number of files (3), a range counted from 0 (100-119), "
        "a share of all files (0.001) or `profile`"
    )


class DownloadScale(Section):
    source: Literal["embedded", "files", "commoncrawl"]
    files: Count


class Download(Section):
    source: Literal["profile", "embedded", "files", "commoncrawl"]
    paths: str
    pages_per_file: Count
    crawl: Annotated[str, Field(pattern=r"^CC-MAIN-\d{4}-\d{2}$")]
    kind: Literal["warc", "wet"]
    files: Annotated[int | float | str, PlainValidator(check_files)]
    seed: Annotated[int, Field(ge=0)]
    urls: str
    index_filters: str
    max_records: Count
    base: Annotated[str, Field(pattern=r"^(https?|s3)://[^/\s]+")]
    index: Annotated[str, Field(pattern=r"^https?://[^/\s]+")]
    user_agent_contact: Annotated[str, Field(pattern=r"^[ -~]*$")]
    connections: Annotated[int, Field(ge=1, le=4)]
    seconds_between_requests: NotNegative
    read_timeout: Positive
    max_attempts: Count

    def at(self, scale: DownloadScale) -> "Download":
        """Return a copy in which values of the profile replace the word `profile`."""
        names = [name for name in ("source", "files") if getattr(self, name) == "profile"]
        return self.model_copy(update={name: getattr(scale, name) for name in names})
