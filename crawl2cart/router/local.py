"""Classify a query as shopping or not, on this machine and without a network.

The classifier answers where GPT-4 cannot. It is logistic regression on TF-IDF of characters, words
and delexicalized queries. Platt scaling turns its score into a probability; it is fitted on topics
that the training queries lack (Platt 1999). The model is saved as vocabularies and arrays, so
loading it runs no code from the file.

A delexicalized query has placeholders for what is specific to its topic:
`is the <brand> <name> <thing> <shop> in <name> ?`, `which <rare> has the most <rare>`.
It carries over to topics whose words no training query has.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, hstack
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json, write_json

LABELS = ("other", "shopping")
MIN_TOPICS = 4  # of a common word: `how` and `bring` are common, `lake` and `kettle` are not
LONG_WORD = 4  # letters; shorter words are mostly function words
STATISTICS_WEIGHT = 2.0  # of the four statistics beside TF-IDF rows of length 1
TOKEN = re.compile(
    r"(?P<code>[A-Z]{1,5}-\d{2,8})|(?P<mail>\S+@\S+\w)|(?P<price>\$\d+(?:[.,]\d+)?)"
    r"|(?P<number>\d+(?:[.,:]\d+)?)|(?P<word>[^\W\d_]+(?:'[a-z]+)?)|(?P<mark>[?!])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Decision:
    """What the classifier decides about one query.

    label: `shopping`, `other`, or `unclear` where neither is likely enough.
    shopping: the calibrated probability of shopping.
    """

    label: str
    shopping: float


@dataclass(frozen=True)
class Lexicon:
    """The words of one shop, in lower case.

    things: words of category names. brands: words of brand names. used: words of descriptions,
    reviews and policies. often: the frequent ones among `used`.
    """

    things: frozenset[str]
    brands: frozenset[str]
    used: frozenset[str]
    often: frozenset[str]


def tokenize_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without numbers, codes and punctuation."""
    return [match["word"].casefold() for match in TOKEN.finditer(text) if match["word"]]


def common_words(rows: list[dict]) -> frozenset[str]:
    """Return the words that occur in queries of several topics. Rows have `text` and `topic`."""
    topics = defaultdict(set)
    for row in rows:
        for word in tokenize_words(row["text"]):
            topics[word].add(row["topic"])
    return frozenset(word for word, used_in in topics.items() if len(used_in) >= MIN_TOPICS)


def delexicalize(text: str, lexicon: Lexicon, common: frozenset[str]) -> list[str]:
    """Replace every token that is not a common word by a placeholder for its kind."""
    tokens = ["^"]
    for match in TOKEN.finditer(text):
        kind, token, capitalized = match.lastgroup, match[0].casefold(), match[0][0].isupper()
        if kind == "mark":
            tokens.append(token)
        elif kind != "word":
            tokens.append(f"<{kind}>")
        elif token in lexicon.brands and capitalized:
            tokens.append("<brand>")
        elif token in lexicon.things:
            tokens.append("<thing>")
        elif token in common:
            tokens.append(token)
        elif capitalized and len(tokens) > 1:
            tokens.append("<name>")
        else:
            tokens.append("<shop>" if token in lexicon.often else "<rare>")
    return [*tokens, "$"]


def word_statistics(text: str, lexicon: Lexicon) -> list[float]:
    """Return four numbers: how far the query's words are the shop's, and its length.

    They are the share of long words that the shop never uses, the share of long words that it
    uses often, the share of category words, and the number of words (at most 60) over 20.
    """
    words = tokenize_words(text)
    long = [word for word in words if len(word) >= LONG_WORD]
    return [
        sum(word not in lexicon.used for word in long) / max(1, len(long)),
        sum(word in lexicon.often for word in long) / max(1, len(long)),
        sum(word in lexicon.things for word in words) / max(1, len(words)),
        min(len(words), 60) / 20,
    ]


def build_vectorizers(lexicon: Lexicon, common: frozenset[str]) -> dict[str, TfidfVectorizer]:
    """Return the three TF-IDF vectorizers, not yet fitted.

    Characters (2 to 5, within words) tolerate typing errors. Words and pairs of words carry the
    meaning. Forms, n-grams of the delexicalized query, carry how it is phrased.
    """

    def form_ngrams(text: str) -> list[str]:
        tokens = delexicalize(text, lexicon, common)
        return [" ".join(tokens[i : i + n]) for n in (1, 2, 3) for i in range(len(tokens) - n + 1)]

    return {
        "characters": TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2, dtype=np.float32
        ),
        "words": TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32
        ),
        "forms": TfidfVectorizer(
            analyzer=form_ngrams, sublinear_tf=True, min_df=2, dtype=np.float32
        ),
    }


def platt(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Fit slope and offset so that sigmoid(slope * score + offset) is a probability.

    scores: (n,) floats. positive: (n,) bools. The targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2)
    instead of 1 and 0: otherwise scores that separate the classes perfectly would give an infinite
    slope. Platt 1999, section 2.2.
    """
    target = np.where(
        positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2)
    )
    label = np.repeat([True, False], len(scores))
    model = LogisticRegression(C=np.inf).fit(
        np.tile(scores, 2)[:, None], label, sample_weight=np.append(target, 1 - target)
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])


class LocalRouter:
    """The trained classifier; `router(text)` returns a Decision.

    weights: (features,), with bias the regression. slope, offset: the calibration.
    abstain_threshold: below this probability of the likelier label the decision is `unclear`.
    """

    def __init__(
        self,
        lexicon: Lexicon,
        common: frozenset[str],
        vectorizers: dict[str, TfidfVectorizer],
        weights: np.ndarray,
        bias: float,
        slope: float,
        offset: float,
        abstain_threshold: float,
    ):
        self.lexicon, self.common, self.vectorizers = lexicon, common, vectorizers
        self.weights, self.bias, self.slope, self.offset = weights, bias, slope, offset
        self.abstain_threshold = abstain_threshold

    @classmethod
    def fit(
        cls,
        train: list[dict],
        validation: list[dict],
        lexicon: Lexicon,
        C: float,
        abstain_threshold: float,
    ) -> "LocalRouter":
        """Fit the regression on `train` and its calibration on `validation`.

        Rows have `text`, `label` and `topic`. C: the inverse of the L2 penalty.
        """
        common = common_words(train)
        vectorizers = build_vectorizers(lexicon, common)
        texts = [row["text"] for row in train]
        for vectorizer in vectorizers.values():
            vectorizer.fit(texts)
        no_weights = np.zeros(0, np.float32)
        router = cls(lexicon, common, vectorizers, no_weights, 0.0, 1.0, 0.0, abstain_threshold)
        model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
        model.fit(router.features(texts), [row["label"] == "shopping" for row in train])
        router.weights, router.bias = model.coef_[0].astype(np.float32), float(model.intercept_[0])
        router.slope, router.offset = platt(
            router.scores([row["text"] for row in validation]),
            np.array([row["label"] == "shopping" for row in validation]),
        )
        return router

    def features(self, texts: list[str]) -> csr_matrix:
        """Return the feature matrix, (texts, features)."""
        statistics = np.array(
            [word_statistics(text, self.lexicon) for text in texts], dtype=np.float32
        )
        tf_idf = [vectorizer.transform(texts) for vectorizer in self.vectorizers.values()]
        return hstack([*tf_idf, csr_matrix(STATISTICS_WEIGHT * statistics)]).tocsr()

    def scores(self, texts: list[str]) -> np.ndarray:
        """Return each text's signed distance from the boundary, positive for shopping."""
        return self.features(texts) @ self.weights + self.bias

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Return each text's calibrated probability of shopping."""
        return expit(self.slope * self.scores(texts) + self.offset)

    def __call__(self, text: str) -> Decision:
        """Decide about one query, or abstain with the label `unclear`."""
        shopping = float(self.probabilities([text])[0])
        sure = max(shopping, 1 - shopping) >= self.abstain_threshold
        return Decision(LABELS[shopping >= 0.5] if sure else "unclear", shopping)

    def save(self, folder: Path) -> None:
        """Write vocabulary.json and router.safetensors; equal classifiers give equal bytes."""
        terms = {
            name: sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.get)
            for name, vectorizer in self.vectorizers.items()
        }
        lexicon = {name: sorted(words) for name, words in vars(self.lexicon).items()}
        vocabulary = {
            "tables": terms,
            "lexicon": lexicon,
            "common": sorted(self.common),
            "abstain_threshold": self.abstain_threshold,
        }
        arrays = {name: vectorizer.idf_ for name, vectorizer in self.vectorizers.items()} | {
            "weights": self.weights,
            "calibration": np.array([self.bias, self.slope, self.offset]),
        }
        write_json(folder / "vocabulary.json", vocabulary)
        save_file(arrays, folder / "router.safetensors")

    @classmethod
    def load(cls, folder: Path | str) -> "LocalRouter":
        """Read what `save` wrote. Raise UserError if it is missing or damaged."""
        folder = Path(folder)
        weights_file = folder / "router.safetensors"
        if not weights_file.is_file():
            raise UserError(f"{folder} holds no router. `dvc repro router` trains one.")
        try:
            saved, arrays = read_json(folder / "vocabulary.json"), load_file(weights_file)
        except SafetensorError as error:
            raise UserError(
                f"{weights_file} is damaged ({error}). Delete {folder} and run `dvc repro router`."
            ) from error
        lexicon = Lexicon(**{name: frozenset(words) for name, words in saved["lexicon"].items()})
        common = frozenset(saved["common"])
        vectorizers = build_vectorizers(lexicon, common)
        for name, vectorizer in vectorizers.items():
            terms = saved["tables"][name]
            vectorizer.set_params(vocabulary={term: i for i, term in enumerate(terms)})
            vectorizer.idf_ = arrays[name]
        bias, slope, offset = map(float, arrays["calibration"])
        threshold = saved["abstain_threshold"]
        return cls(lexicon, common, vectorizers, arrays["weights"], bias, slope, offset, threshold)
