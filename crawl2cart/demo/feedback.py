"""Thumbs of customers, kept in a folder that git ignores, for `build_prefs` to read as extra pairs.

runs/feedback/<conversation>.jsonl holds one line for each answer of the shopping model that was judged:

    {"messages": [...], "reply": {"role": "assistant", "content": "..."}, "liked": true}

`messages` are those of the OpenAI API on which the reply was written, tool calls and results included; `reply` is the message
that was judged. A judgement that was changed or taken back changes its line. The name is a hash, since a key would open the
conversation.
"""

import hashlib
import json
import threading
from pathlib import Path

from crawl2cart.core.files import atomic_file
from crawl2cart.demo.sessions import Chat

FEEDBACK = Path("runs/feedback")


class Feedback:
    """Writes the thumbs of conversations. Safe to share between threads."""

    def __init__(self, folder: Path = FEEDBACK):
        self.folder = folder
        self._lock = threading.Lock()

    def record_feedback(self, chat: Chat, turn: int, part: int, liked: bool) -> None:
        """Notes a thumb on an answer of the agent's; the same thumb again takes it back. Others are left alone."""
        if not (0 <= turn < len(chat.turns) and 0 <= part < len(chat.turns[turn].parts)):
            return
        judged = chat.turns[turn].parts[part]
        if not judged.prompt:
            return
        with self._lock:
            judged.liked = None if judged.liked == liked else liked
            self._save(chat)

    def _save(self, chat: Chat) -> None:
        rows = [
            {
                "messages": part.prompt,
                "reply": {"role": "assistant", "content": part.text},
                "liked": part.liked,
            }
            for turn in chat.turns
            for part in turn.parts
            if part.liked is not None
        ]
        path = self.folder / f"{hashlib.sha256(chat.key.encode()).hexdigest()[:16]}.jsonl"
        if not rows:
            path.unlink(missing_ok=True)
            return
        with atomic_file(path) as temporary:
            temporary.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            )
