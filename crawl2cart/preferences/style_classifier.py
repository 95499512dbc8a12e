"""Score the tone of a reply: a good shop assistant's, or cold, wordy, pushy or over-apologetic.

The scorer learns from situations of data/store/tone.jsonl, each with one good and four faulty
replies. Pairs for DPO and the evaluation use scorers of disjoint situations, so that the second
measures more than what pleased the first. Plain rules reject what no good reply does.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

GOOD = "good"
FAULTS = ("cold", "wordy", "pushy", "over_apologetic")
FOLDS = 5

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
APOLOGY = re.compile(r"\b(?:sorry|apolog\w+|forgive|regret|ashamed|embarrass\w+)\b", re.IGNORECASE)
PRESSING = re.compile(
    r"\b(?:basket|add|buy|treat yourself|deserve\w*|hurry|today|now|while|before|best|must|why not"
    r"|trust me|honestly|take (?:two|three|both)|best-?seller|don't|shall i|let's|i'll)\b",
    re.IGNORECASE,
)
SELLING = re.compile(
    r"\b(?:hurry|treat yourself|you deserve|don't miss|must-have|selling fast|last chance"
    r"|before (?:they|it)'?s? gone|buy (?:it|one|two) now|trust me|take (?:two|three))\b",
    re.IGNORECASE,
)
MAX_WORDS = 60  # outside of lists; the longest good reply of tone.jsonl has 50


@dataclass
class ToneScorer:
    """A logistic regression over TF-IDF of words and word pairs, and over `manner_features`."""

    model: Pipeline

    @classmethod
    def fit(cls, situations: list[dict]) -> "ToneScorer":
        """Fit a scorer to situations: dicts with a text for `good` and for each of FAULTS."""
        texts = _texts(situations)
        is_good = [kind == GOOD for _ in situations for kind in (GOOD, *FAULTS)]
        words = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, min_df=2, preprocessor=_mask_with_length
        )
        manner = make_pipeline(FunctionTransformer(manner_features), StandardScaler())
        model = make_pipeline(
            FeatureUnion([("words", words), ("manner", manner)]),
            LogisticRegression(C=10.0, class_weight="balanced", max_iter=3000),
        )
        return cls(model.fit(texts, is_good))

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Return the probability that each reply is good, (len(texts),)."""
        return self.model.predict_proba(texts)[:, 1]

    def wins(self, situations: list[dict]) -> np.ndarray:
        """Return whether the good reply beats each faulty one, (len(situations), len(FAULTS))."""
        scores = self(_texts(situations)).reshape(-1, 1 + len(FAULTS))
        return scores[:, :1] > scores[:, 1:]

    def accuracy(self, situations: list[dict]) -> float:
        """Return the share of (good, faulty) pairs of a situation that the good reply wins."""
        return float(self.wins(situations).mean())


def fit_with_accuracy(situations: list[dict]) -> tuple[ToneScorer, dict[str, float]]:
    """Fit a scorer to all situations, and measure it by cross-validation over situations.

    accuracy: share of (good, faulty) pairs of a held-out situation that the good reply wins; each
    name of FAULTS: the same for that fault. situations: share in which the good reply beats all.
    """
    wins = np.zeros((len(situations), len(FAULTS)), dtype=bool)
    for fold in range(FOLDS):
        rest = [row for number, row in enumerate(situations) if number % FOLDS != fold]
        wins[fold::FOLDS] = ToneScorer.fit(rest).wins(situations[fold::FOLDS])
    shares = {
        "accuracy": wins.mean(),
        "situations": wins.all(1).mean(),
        **dict(zip(FAULTS, wins.mean(0), strict=True)),
    }
    return ToneScorer.fit(situations), {name: float(value) for name, value in shares.items()}


def _texts(situations: list[dict]) -> list[str]:
    """Return the replies of all situations, the good one of each first."""
    return [situation[kind] for situation in situations for kind in (GOOD, *FAULTS)]


def _mask_with_length(text: str) -> str:
    """Return the text in lower case, words with digits masked, and its length as one more word."""
    words = text.split()
    masked = ["0" if any(sign.isdigit() for sign in word) else word.lower() for word in words]
    return " ".join([*masked, f"length{min(len(words) // 8, 9)}"])


def sentences(text: str) -> list[str]:
    """Split a text at line breaks, and behind full stops, question and exclamation marks."""
    return [part for part in SENTENCE.split(text) if part.strip()]


def manner_features(texts: list[str]) -> np.ndarray:
    """Return features that single words do not show, (len(texts), 13)."""
    return np.array([_manner(text) for text in texts], dtype=float)


def _manner(text: str) -> list[float]:
    """Return lengths, punctuation, apologies, pressing words and pronouns of a text."""
    words, parts = text.split() or [""], sentences(text) or [""]
    bare = [word.lower().strip(",.'!?").split("'")[0] for word in words]
    return [
        math.log(1 + len(words)),
        len(words) / len(parts),
        len(parts),
        max(len(part.split()) for part in parts),
        sum(map(len, words)) / len(words),
        text.count("?"),
        text.count("!"),
        text.rstrip().endswith("?"),
        text.count(",") / len(parts),
        len(APOLOGY.findall(text)),
        len(PRESSING.findall(text)) / math.sqrt(len(words)),
        sum(word in ("i", "me", "my") for word in bare) / len(words),
        sum(word in ("you", "your") for word in bare) / len(words),
    ]


def broken_rules(reply: str) -> list[str]:
    """Return what a reply does that no good reply does."""
    parts = [part.strip().casefold() for part in sentences(reply)]
    outside_lists = [part for part in parts if not part.startswith("- ")]
    shouted = re.findall(r"\b[A-Z]{4,}\b(?!-\d)", reply)
    rules = [
        (len(APOLOGY.findall(reply)) > 1, "apologises more than once"),
        (bool(SELLING.search(reply)), "presses to buy"),
        (reply.count("!") > 1 or bool(shouted), "shouts"),
        (len(outside_lists) > len(set(outside_lists)), "says a sentence twice"),
        (sum(len(part.split()) for part in outside_lists) > MAX_WORDS, "is too long"),
    ]
    return [rule for broken, rule in rules if broken]
