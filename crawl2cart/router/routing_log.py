"""Record every routing decision, and decide recorded queries again with the current router.

A record has the label, who decided, the confidence, the cost, and the query's hash. It has the
query's text only if `demo.log_text` of params.yaml is set, and never a key.
"""

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl
from crawl2cart.router.policy import EARLIER_QUERIES, PROMPT_VERSION, Route

LOG_PATH = Path("runs/decisions.jsonl")
REQUIRED_KEYS = {"hash", "route", "source", "confidence", "prompt"}


def text_hash(text: str) -> str:
    """Return a text's sha256 in hex. It identifies a known text; it hides no guessable one."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def log_entry(
    text: str, before: tuple[str, ...], route: Route, destination: str | None, keep_text: bool
) -> dict:
    """Return the record of one decision.

    destination: `shopping` or `other`, None if the customer was asked to clarify. GPT-4's reason
    may repeat the customer's words, so it is kept only together with the text.
    """
    entry = {
        "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "hash": text_hash(text),
        "route": route.label,
        "went": destination,
        "source": route.source,
        "confidence": route.confidence,
        "intent": route.intent,
        "prompt": PROMPT_VERSION,
        "why": route.why if keep_text or route.source == "local" else None,
    } | asdict(route.spent)
    if keep_text:
        entry |= {"text": text, "before": list(before[-EARLIER_QUERIES:])}
    return entry


class RoutingLog:
    """Appends records to a file of JSON lines, from any thread.

    A file that cannot be written costs no answer: it is reported once on stderr.
    """

    def __init__(self, path: Path = LOG_PATH, keep_text: bool = False):
        self.path, self.keep_text = path, keep_text
        self._lock, self._warned = threading.Lock(), False

    def __call__(
        self, text: str, before: tuple[str, ...], route: Route, destination: str | None
    ) -> None:
        """Append the record of one decision; arguments as for `log_entry`."""
        entry = log_entry(text, before, route, destination, self.keep_text)
        line = json.dumps(entry, ensure_ascii=True, sort_keys=True)
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a") as file:
                    file.write(line + "\n")
            except OSError as error:
                if not self._warned:
                    print(
                        f"crawl2cart: {self.path} cannot be written ({error.strerror}), so routing "
                        "decisions are not recorded. Free the path or its disk.",
                        file=sys.stderr,
                    )
                self._warned = True


def replay(
    path: Path, texts: Path | None, router: Callable[[str, tuple[str, ...]], Route]
) -> Iterator[dict]:
    """Decide every recorded query again. Yield {hash, was, now, same} for each.

    texts: JSON lines with a `text`, for records without one. `now` is None where the text is
    unknown. Raise UserError if `path` is no routing log or `texts` has an entry without a text.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing. `crawl2cart demo`, `chat` and `ask` write it.")
    texts_by_hash = read_texts(texts) if texts else {}
    for number, entry in enumerate(read_jsonl(path), 1):
        if not isinstance(entry, dict) or REQUIRED_KEYS - set(entry):
            raise UserError(f"{path}:{number} is no record of a decision. Remove the line.")
        text = entry.get("text", texts_by_hash.get(entry["hash"]))
        was = {key: entry[key] for key in ("route", "source", "confidence", "prompt")}
        now = None
        if text is not None:
            route = router(text, tuple(entry.get("before", ())))
            now = {
                "route": route.label,
                "source": route.source,
                "confidence": route.confidence,
                "prompt": PROMPT_VERSION,
            }
        same = now and now["route"] == was["route"]
        yield {"hash": entry["hash"], "was": was, "now": now, "same": same}


def read_texts(path: Path) -> dict[str, str]:
    """Return the texts of a file of JSON lines by their hashes."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing. --texts needs a file of JSON lines with a `text`, such as "
            "data/queries/test.jsonl."
        )
    lines = read_jsonl(path)
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not isinstance(line.get("text"), str):
            raise UserError(f"{path}: entry {number} has no `text`. Add it or remove the line.")
    return {text_hash(line["text"]): line["text"] for line in lines}
