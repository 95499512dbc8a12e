"""Save customers' thumbs in a folder that git ignores; `build_prefs` reads them as extra pairs.

runs/feedback/<conversation>.jsonl has one line for each rated answer of the shopping model:

    {"messages": [...], "reply": {"role": "assistant", "content": "..."}, "liked": true}

`messages` are those of the OpenAI API before the reply, with tool calls and results. `reply` is
the rated message. A rating that changes or is withdrawn changes its line. The file name is a hash,
because the key itself would open the conversation.
"""

import hashlib
import json
import threading
from pathlib import Path

from crawl2cart.core.files import atomic_file
from crawl2cart.demo.sessions import Chat

FEEDBACK = Path("runs/feedback")


class Feedback:
    """Writes the ratings of conversations. Safe to share between threads."""

    def __init__(self, folder: Path = FEEDBACK):
        self.folder = folder
        self._lock = threading.Lock()

    def record_feedback(self, chat: Chat, turn: int, response: int, liked: bool) -> None:
        """Rate an answer of the agent; the same rating again withdraws it. Ignore other answers."""
        if not 0 <= turn < len(chat.turns):
            return
        responses = chat.turns[turn].responses
        if not 0 <= response < len(responses) or not responses[response].prompt:
            return
        rated = responses[response]
        with self._lock:
            rated.liked = None if rated.liked == liked else liked
            self._save(chat)

    def _save(self, chat: Chat) -> None:
        rows = [
            {
                "messages": response.prompt,
                "reply": {"role": "assistant", "content": response.text},
                "liked": response.liked,
            }
            for turn in chat.turns
            for response in turn.responses
            if response.liked is not None
        ]
        path = self.folder / f"{hashlib.sha256(chat.key.encode()).hexdigest()[:16]}.jsonl"
        if not rows:
            path.unlink(missing_ok=True)
            return
        with atomic_file(path) as temporary:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            temporary.write_text("".join(lines))
