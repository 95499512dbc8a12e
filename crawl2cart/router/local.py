"""The local classifier: is a query about shopping or not? Used when GPT-4 is not to be had, in well under 5 ms.

TF-IDF over characters, words and forms with logistic regression, its score turned into a calibrated probability on queries
about matters it has not seen (Platt 1999). Saved as vocabularies and arrays, so that loading runs no code from the file.

A form is the query with what only one matter talks about taken out: `is the <brand> <name> <thing> <shop> in <name>?`,
`which <rare> has the most <rare>`. It carries over to matters that no training query is about, which their words do not.
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
TOPICS_OF_A_COMMON_WORD = (
    4  # at least; `how`, `much` and `bring` are common, `lake` and `kettle` are not
)
LONG = 4  # letters: shorter words are seldom about anything
MEASURES_WEIGHT = 2.0  # of the four shares, beside TF-IDF rows of length 1
PIECE = re.compile(
    r"(?P<code>[A-Z]{1,5}-\d{2,8})|(?P<mail>\S+@\S+\w)|(?P<price>\$\d+(?:[.,]\d+)?)|(?P<number>\d+(?:[.,:]\d+)?)"
    r"|(?P<word>[^\W\d_]+(?:'[a-z]+)?)|(?P<mark>[?!])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Decision:
    """label: `shopping`, `other` or, when neither is likely enough, `unclear`. shopping: its calibrated probability."""

    label: str
    shopping: float


@dataclass(frozen=True)
class Lexicon:
    """The words of one shop, in small letters. things: of its categories; brands; used: of its descriptions, reviews and
    policies; often: those of them that stand there five times.
    """

    things: frozenset[str]
    brands: frozenset[str]
    used: frozenset[str]
    often: frozenset[str]


def tokenize_words(text: str) -> list[str]:
    return [piece["word"].casefold() for piece in PIECE.finditer(text) if piece["word"]]


def common_words(rows: list[dict]) -> frozenset[str]:
    """The words that queries about several topics use. Rows: `text` and `topic`."""
    topics = defaultdict(set)
    for row in rows:
        for word in tokenize_words(row["text"]):
            topics[word].add(row["topic"])
    return frozenset(
        word for word, found in topics.items() if len(found) >= TOPICS_OF_A_COMMON_WORD
    )


def form(text: str, lexicon: Lexicon, common: frozenset[str]) -> list[str]:
    """The query's pieces, each as what kind of thing it is unless it is a common word."""
    pieces = ["^"]
    for found in PIECE.finditer(text):
        kind, piece = found.lastgroup, found[0].casefold()
        if kind == "mark":
            pieces.append(piece)
        elif kind != "word":
            pieces.append(f"<{kind}>")
        elif piece in lexicon.brands and found[0][0].isupper():
            pieces.append("<brand>")
        elif piece in lexicon.things:
            pieces.append("<thing>")
        elif piece in common:
            pieces.append(piece)
        elif found[0][0].isupper() and len(pieces) > 1:
            pieces.append("<name>")
        else:
            pieces.append("<shop>" if piece in lexicon.often else "<rare>")
    return [*pieces, "$"]


def measures(text: str, lexicon: Lexicon) -> list[float]:
    """Of the long words the share that the shop never uses and that it often does, the share of its things, the length."""
    found = tokenize_words(text)
    long = [word for word in found if len(word) >= LONG]
    return [
        sum(word not in lexicon.used for word in long) / max(1, len(long)),
        sum(word in lexicon.often for word in long) / max(1, len(long)),
        sum(word in lexicon.things for word in found) / max(1, len(found)),
        min(len(found), 60) / 20,
    ]


def vectorizers(lexicon: Lexicon, common: frozenset[str]) -> dict[str, TfidfVectorizer]:
    """Characters within words (2 to 5) see through typing errors; words and pairs carry the meaning; forms how one asks."""

    def form_runs(text: str) -> list[str]:
        pieces = form(text, lexicon, common)
        return [" ".join(pieces[i : i + n]) for n in (1, 2, 3) for i in range(len(pieces) - n + 1)]

    return {
        "characters": TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2, dtype=np.float32
        ),
        "words": TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32
        ),
        "forms": TfidfVectorizer(analyzer=form_runs, sublinear_tf=True, min_df=2, dtype=np.float32),
    }


def platt(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Slope and offset that make sigmoid(slope * score + offset) a probability.

    scores, positive: one a query, `positive` of bool. The targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2) instead of 1
    and 0, without which queries that the scores separate perfectly would make the slope infinite. Platt 1999, section 2.2.
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
    """weights (features,), bias: the regression. slope, offset: its calibration.

    abstain_threshold: the least probability of the likelier label at which it is said.
    """

    def __init__(
        self,
        lexicon: Lexicon,
        common: frozenset[str],
        tables: dict[str, TfidfVectorizer],
        weights: np.ndarray,
        bias: float,
        slope: float,
        offset: float,
        abstain_threshold: float,
    ):
        self.lexicon, self.common, self.tables = lexicon, common, tables
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
        """train fits the regression, validation its calibration. Rows: `text`, `label` and `topic`."""
        common = common_words(train)
        tables, texts = vectorizers(lexicon, common), [row["text"] for row in train]
        for table in tables.values():
            table.fit(texts)
        router = cls(
            lexicon, common, tables, np.zeros(0, np.float32), 0.0, 1.0, 0.0, abstain_threshold
        )
        model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
        model.fit(router.features(texts), [row["label"] == "shopping" for row in train])
        router.weights, router.bias = model.coef_[0].astype(np.float32), float(model.intercept_[0])
        router.slope, router.offset = platt(
            router.scores([row["text"] for row in validation]),
            np.array([row["label"] == "shopping" for row in validation]),
        )
        return router

    def features(self, texts: list[str]) -> csr_matrix:
        """(texts, features)"""
        shares = MEASURES_WEIGHT * np.array(
            [measures(text, self.lexicon) for text in texts], dtype=np.float32
        )
        return hstack(
            [*(table.transform(texts) for table in self.tables.values()), csr_matrix(shares)]
        ).tocsr()

    def scores(self, texts: list[str]) -> np.ndarray:
        """Distance from the boundary, positive on the side of shopping, one a text."""
        return self.features(texts) @ self.weights + self.bias

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Calibrated probability of shopping, one a text."""
        return expit(self.slope * self.scores(texts) + self.offset)

    def __call__(self, text: str) -> Decision:
        shopping = float(self.probabilities([text])[0])
        label = LABELS[shopping >= 0.5]
        return Decision(
            label if max(shopping, 1 - shopping) >= self.abstain_threshold else "unclear", shopping
        )

    def save(self, folder: Path) -> None:
        said = {
            name: sorted(table.vocabulary_, key=table.vocabulary_.get)
            for name, table in self.tables.items()
        }
        shop = {name: sorted(found) for name, found in vars(self.lexicon).items()}
        write_json(
            folder / "vocabulary.json",
            {
                "tables": said,
                "lexicon": shop,
                "common": sorted(self.common),
                "abstain_threshold": self.abstain_threshold,
            },
        )
        save_file(
            {name: table.idf_ for name, table in self.tables.items()}
            | {
                "weights": self.weights,
                "calibration": np.array([self.bias, self.slope, self.offset]),
            },
            folder / "router.safetensors",
        )

    @classmethod
    def load(cls, folder: Path | str) -> "LocalRouter":
        """Reads what `save` wrote. Raises UserError if it is not there or damaged."""
        folder = Path(folder)
        if not (folder / "router.safetensors").is_file():
            raise UserError(f"{folder} holds no router. `dvc repro router` trains it.")
        try:
            saved, arrays = (
                read_json(folder / "vocabulary.json"),
                load_file(folder / "router.safetensors"),
            )
        except SafetensorError as error:
            raise UserError(
                f"{folder / 'router.safetensors'} is damaged ({error}). Delete {folder} and run "
                "`dvc repro router`."
            ) from error
        lexicon = Lexicon(**{name: frozenset(found) for name, found in saved["lexicon"].items()})
        common = frozenset(saved["common"])
        tables = vectorizers(lexicon, common)
        for name, table in tables.items():
            table.set_params(vocabulary={gram: i for i, gram in enumerate(saved["tables"][name])})
            table.idf_ = arrays[name]
        bias, slope, offset = (float(value) for value in arrays["calibration"])
        return cls(
            lexicon,
            common,
            tables,
            arrays["weights"],
            bias,
            slope,
            offset,
            saved["abstain_threshold"],
        )
