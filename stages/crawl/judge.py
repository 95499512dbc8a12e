"""One page's way through the rules that need no other page: HTTP, size, text, language, quality.

The first rule that a page fails names the reason why it goes.
"""

import pyarrow as pa

from stages.common.params import Filter
from stages.crawl.dedup import text_key
from stages.crawl.extract import TooDeep, html_to_text, is_html, plain_to_text
from stages.crawl.language import language, may_be
from stages.crawl.quality import gopher
from stages.crawl.warc import Record

# large_string: all texts of a crawl in one column may pass the 2 GiB that a string column holds.
SHARD = pa.schema([("url", pa.string()), ("text", pa.large_string()), ("language", pa.string()),
                   ("language_score", pa.float32()), ("key", pa.string()), ("reason", pa.string()),
                   ("score", pa.float32())])


def judge(record: Record, limits: Filter) -> dict:
    """One row of a shard: the page's text, and the first rule it fails with its score, or reason ""."""
    row = {"url": record.url, "text": "", "language": "", "language_score": 0.0, "key": "", "reason": "", "score": 0.0}
    if not record.url.startswith(("http://", "https://")):
        return row | {"reason": "no_web_page"}  # what crawlers file beside pages: DNS answers, their own logs
    if record.status != 200:
        return row | {"reason": "http_status", "score": record.status}
    if len(record.body) > limits.max_page_bytes:
        return row | {"reason": "too_large", "score": len(record.body)}
    if record.is_text or record.content_type == "text/plain":
        row["text"] = plain_to_text(record.body, record.charset)
    elif is_html(record.content_type, record.body):
        try:
            row["text"] = html_to_text(record.body, record.charset)
        except TooDeep:
            return row | {"reason": "too_deep"}
    else:
        return row | {"reason": "content_type"}
    if not row["text"]:
        return row | {"reason": "no_text"}
    if not may_be(row["text"], limits.language):
        return row | {"reason": "language"}
    row["language"], row["language_score"] = language(row["text"])
    if row["language"] != limits.language or row["language_score"] < limits.language_threshold:
        return row | {"reason": "language", "score": row["language_score"]}
    verdict = gopher(row["text"], limits)
    if not verdict.ok:
        return row | {"reason": verdict.reason, "score": verdict.scores[verdict.reason]}
    return row | {"key": text_key(row["text"])}
