"""How a reply sounds: like a good shop assistant's, or right but cold, wordy, pushy or over-apologetic.

A scorer learns it from replies to one situation written in all five ways (data/store/tone.jsonl). The pairs for DPO and the
evaluation use scorers of disjoint situations, so that the second can find out what only pleased the first.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

GOOD = "good"
FAULTS = ("cold", "wordy", "pushy", "over_apologetic")
HELD_OUT_PART = 5


@dataclass
class ToneScorer:
    """model: TF-IDF of words and pairs of words with length in words beside it, logistic regression."""

    model: object

    @classmethod
    def fit(cls, situations: list[dict]) -> "ToneScorer":
        """situations: rows with a text under each of `good` and FAULTS."""
        texts, good = labelled(situations)
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, preprocessor=with_length),
            LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000))
        return cls(model.fit(texts, good))

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Probability that each reply sounds good, (len(texts),)."""
        return self.model.predict_proba(texts)[:, 1]

    def accuracy(self, situations: list[dict]) -> float:
        """Share of (good, faulty) pairs of one situation in which the good reply scores higher."""
        wins = [self([row[GOOD]])[0] > other for row in situations for other in self([row[fault] for fault in FAULTS])]
        return float(np.mean(wins))


def labelled(situations: list[dict]) -> tuple[list[str], list[bool]]:
    texts = [row[kind] for row in situations for kind in (GOOD, *FAULTS)]
    return texts, [kind == GOOD for _ in situations for kind in (GOOD, *FAULTS)]


def with_length(text: str) -> str:
    """The text in lower case with names and numbers masked and its length as a word: too short is cold, too long is wordy."""
    words = text.split()
    masked = ["0" if any(sign.isdigit() for sign in word) else word.lower() for word in words]
    return " ".join([*masked, f"length{min(len(words) // 8, 9)}"])


def fit_with_accuracy(situations: list[dict]) -> tuple[ToneScorer, float]:
    """A scorer of all situations, and the accuracy of one that did not see every fifth, on those."""
    held_out = situations[::HELD_OUT_PART]
    rest = [row for number, row in enumerate(situations) if number % HELD_OUT_PART]
    return ToneScorer.fit(situations), ToneScorer.fit(rest).accuracy(held_out)
