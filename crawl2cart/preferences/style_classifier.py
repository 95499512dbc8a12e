"""How a reply sounds: like a good shop assistant's, or right but cold, wordy, pushy or over-apologetic.

A scorer learns it from replies to one situation written in all five ways (data/store/tone.jsonl). The pairs for DPO and the
evaluation use scorers of disjoint situations, so that the second can find out what only pleased the first. Beside it stand
plain rules: what no good reply does, whatever a classifier makes of its words.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

GOOD = "good"
FAULTS = ("cold", "wordy", "pushy", "over_apologetic")
FOLDS = 5

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
SORRY = re.compile(r"\b(?:sorry|apolog\w+|forgive|regret|ashamed|embarrass\w+)\b", re.IGNORECASE)
PRESSING = re.compile(
    r"\b(?:basket|add|buy|treat yourself|deserve\w*|hurry|today|now|while|before|best|must|why not|trust me|honestly"
    r"|take (?:two|three|both)|best-?seller|don't|shall i|let's|i'll)\b",
    re.IGNORECASE,
)
SELLING = re.compile(
    r"\b(?:hurry|treat yourself|you deserve|don't miss|must-have|selling fast|last chance|before (?:they|it)'?s? gone"
    r"|buy (?:it|one|two) now|trust me|take (?:two|three))\b",
    re.IGNORECASE,
)
LONGEST = 60  # words outside of a list; the longest good reply of tone.jsonl has 50


@dataclass
class ToneScorer:
    """model: TF-IDF of words and pairs of words, and beside it the measures of `manner`, into a logistic regression."""

    model: object

    @classmethod
    def fit(cls, situations: list[dict]) -> "ToneScorer":
        """situations: rows with a text under each of `good` and FAULTS."""
        texts, good = labelled(situations)
        words = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, min_df=2, preprocessor=with_length
        )
        measures = make_pipeline(FunctionTransformer(manner), StandardScaler())
        model = make_pipeline(
            FeatureUnion([("words", words), ("manner", measures)]),
            LogisticRegression(C=10.0, class_weight="balanced", max_iter=3000),
        )
        return cls(model.fit(texts, good))

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Probability that each reply sounds good, (len(texts),)."""
        return self.model.predict_proba(texts)[:, 1]

    def wins(self, situations: list[dict]) -> np.ndarray:
        """Whether the good reply scores higher than each faulty one of its situation, (len(situations), len(FAULTS))."""
        scores = self([row[kind] for row in situations for kind in (GOOD, *FAULTS)]).reshape(
            -1, 1 + len(FAULTS)
        )
        return scores[:, :1] > scores[:, 1:]

    def accuracy(self, situations: list[dict]) -> float:
        """Share of (good, faulty) pairs of one situation in which the good reply scores higher."""
        return float(self.wins(situations).mean())


def labelled(situations: list[dict]) -> tuple[list[str], list[bool]]:
    texts = [row[kind] for row in situations for kind in (GOOD, *FAULTS)]
    return texts, [kind == GOOD for _ in situations for kind in (GOOD, *FAULTS)]


def with_length(text: str) -> str:
    """The text in lower case with names and numbers masked and its length as a word: too short is cold, too long is wordy."""
    words = text.split()
    masked = ["0" if any(sign.isdigit() for sign in word) else word.lower() for word in words]
    return " ".join([*masked, f"length{min(len(words) // 8, 9)}"])


def sentences(text: str) -> list[str]:
    return [part for part in SENTENCE.split(text) if part.strip()]


def manner(texts: list[str]) -> np.ndarray:
    """What the single words do not show, (len(texts), 13): lengths, questions, apologies, pressing words, who is spoken of."""
    rows = []
    for text in texts:
        words, parts = text.split() or [""], sentences(text) or [""]
        bare = [word.lower().strip(",.'!?") for word in words]
        spoken_of = [
            sum(word.split("'")[0] in who for word in bare) / len(words)
            for who in (("i", "me", "my"), ("you", "your"))
        ]
        rows.append(
            [
                math.log(1 + len(words)),
                len(words) / len(parts),
                len(parts),
                max(len(part.split()) for part in parts),
                sum(map(len, words)) / len(words),
                text.count("?"),
                text.count("!"),
                text.rstrip().endswith("?"),
                text.count(",") / len(parts),
                len(SORRY.findall(text)),
                len(PRESSING.findall(text)) / math.sqrt(len(words)),
                *spoken_of,
            ]
        )
    return np.array(rows, dtype=float)


def broken_rules(reply: str) -> list[str]:
    """What no good reply does, in words."""
    parts = [part.strip().casefold() for part in sentences(reply)]
    outside = [part for part in parts if not part.startswith("- ")]
    shouted = re.findall(r"\b[A-Z]{4,}\b(?!-\d)", reply)
    rules = [
        (len(SORRY.findall(reply)) > 1, "apologises more than once"),
        (bool(SELLING.search(reply)), "presses to buy"),
        (reply.count("!") > 1 or bool(shouted), "shouts"),
        (len(outside) > len(set(outside)), "says a sentence twice"),
        (sum(len(part.split()) for part in outside) > LONGEST, "is too long"),
    ]
    return [rule for broken, rule in rules if broken]


def fit_with_accuracy(situations: list[dict]) -> tuple[ToneScorer, dict[str, float]]:
    """A scorer of all situations, and how right scorers are on situations that they did not see (each is held out once).

    accuracy: of the pairs of a good and a faulty reply to one situation, those in which the good one scores higher; by fault too.
    situations: those in which the good reply is above all four.
    """
    wins = np.zeros((len(situations), len(FAULTS)), dtype=bool)
    for fold in range(FOLDS):
        rest = [row for number, row in enumerate(situations) if number % FOLDS != fold]
        wins[fold::FOLDS] = ToneScorer.fit(rest).wins(situations[fold::FOLDS])
    found = {
        "accuracy": wins.mean(),
        "situations": wins.all(1).mean(),
        **dict(zip(FAULTS, wins.mean(0), strict=True)),
    }
    return ToneScorer.fit(situations), {name: float(value) for name, value in found.items()}
