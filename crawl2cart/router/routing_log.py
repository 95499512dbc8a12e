"""The record of every routing decision, and what the router of today would decide instead.

A record says what was decided, by whom, how sure, what it took, and which text it was by its hash alone. The text itself
is kept only where `demo.log_text` of params.yaml asks for it; keys are in no record.
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
from crawl2cart.router.policy import PROMPT_VERSION, TURNS_BEFORE, Route

DECISIONS = Path("runs/decisions.jsonl")
NEEDED = {"hash", "route", "source", "confidence", "prompt"}


def text_hash(text: str) -> str:
    """sha256 in hex. It recognises a text that one has; it does not hide one that can be guessed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def record(
    text: str, before: tuple[str, ...], route: Route, went: str | None, keep_text: bool
) -> dict:
    """went: the place the conversation took the query to, None if the customer was asked back.

    GPT-4's reason may repeat the customer's words, so it is kept only with the text.
    """
    ours = {
        "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "hash": text_hash(text),
        "route": route.label,
        "went": went,
        "source": route.source,
        "confidence": route.confidence,
        "intent": route.intent,
        "prompt": PROMPT_VERSION,
        "why": route.why if keep_text or route.source == "local" else None,
    } | asdict(route.spent)
    return ours | ({"text": text, "before": list(before[-TURNS_BEFORE:])} if keep_text else {})


class DecisionLog:
    """Appends records to a file, one JSON object a line, from any thread. A file that cannot be written costs no answer."""

    def __init__(self, path: Path = DECISIONS, keep_text: bool = False):
        self.path, self.keep_text = path, keep_text
        self._lock, self._warned = threading.Lock(), False

    def __call__(self, text: str, before: tuple[str, ...], route: Route, went: str | None) -> None:
        line = json.dumps(
            record(text, before, route, went, self.keep_text), ensure_ascii=True, sort_keys=True
        )
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a") as file:
                    file.write(line + "\n")
            except OSError as error:
                if not self._warned:
                    print(
                        f"crawl2cart: decisions are not recorded, {self.path}: {error.strerror}",
                        file=sys.stderr,
                    )
                self._warned = True


def replay(
    path: Path, texts: Path | None, router: Callable[[str, tuple[str, ...]], Route]
) -> Iterator[dict]:
    """Decides every recorded query again. Yields {hash, was, now, same}; `now` is None where the text is not known.

    texts: JSON lines with a `text`, for records that keep only its hash. Raises UserError on a file that is no log or has no texts.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing. `crawl2cart chat` and `ask` write it.")
    known = known_texts(texts) if texts else {}
    for number, line in enumerate(read_jsonl(path), 1):
        if not isinstance(line, dict) or NEEDED - set(line):
            raise UserError(f"{path}:{number} is no record of a decision. Take the line out.")
        text = line.get("text", known.get(line["hash"]))
        was = {key: line[key] for key in ("route", "source", "confidence", "prompt")}
        now = None
        if text is not None:
            route = router(text, tuple(line.get("before", ())))
            now = {
                "route": route.label,
                "source": route.source,
                "confidence": route.confidence,
                "prompt": PROMPT_VERSION,
            }
        yield {
            "hash": line["hash"],
            "was": was,
            "now": now,
            "same": now and now["route"] == was["route"],
        }


def known_texts(path: Path) -> dict[str, str]:
    """The texts of a file of JSON lines by their hashes."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing. --texts should name a file of JSON lines with a `text`, such as data/queries/test.jsonl."
        )
    lines = read_jsonl(path)
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not isinstance(line.get("text"), str):
            raise UserError(
                f"{path}: its entry {number} has no `text`. Add it or take the line out."
            )
    return {text_hash(line["text"]): line["text"] for line in lines}
