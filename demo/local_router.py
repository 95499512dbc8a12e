"""The local classifier: is a query about shopping or not? Used when GPT-4 is not to be had, in well under 5 ms.

TF-IDF over characters and words with logistic regression, its score turned into a calibrated probability on held-out
queries (Platt 1999). Saved as two vocabularies and arrays, so that loading runs no code from the file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, hstack
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from stages.common.files import read_json, write_json
from stages.common.problem import Problem

LABELS = ("other", "shopping")


@dataclass(frozen=True)
class Decision:
    """label: `shopping`, `other` or, when neither is likely enough, `unclear`. shopping: its calibrated probability."""

    label: str
    shopping: float


def vectorizers() -> tuple[TfidfVectorizer, TfidfVectorizer]:
    """Characters within words (2 to 5) see through typing errors; words and pairs of words carry the meaning."""
    return (TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2, dtype=np.float32),
            TfidfVectorizer(analyzer="word", ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b",
                            dtype=np.float32))


def platt(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Slope and offset that make sigmoid(slope * score + offset) a probability.

    scores, positive: one a query, `positive` of bool. The targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2) instead of 1
    and 0, without which queries that the scores separate perfectly would make the slope infinite. Platt 1999, section 2.2.
    """
    target = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))
    label = np.repeat([True, False], len(scores))
    model = LogisticRegression(C=np.inf).fit(np.tile(scores, 2)[:, None], label, sample_weight=np.append(target, 1 - target))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


class LocalRouter:
    """weights (features,), bias: the regression. slope, offset: its calibration.

    unclear_below: the least probability of the likelier label at which it is said.
    """

    def __init__(self, characters: TfidfVectorizer, words: TfidfVectorizer, weights: np.ndarray, bias: float,
                 slope: float, offset: float, unclear_below: float):
        self.characters, self.words = characters, words
        self.weights, self.bias, self.slope, self.offset = weights, bias, slope, offset
        self.unclear_below = unclear_below

    @classmethod
    def fit(cls, train: list[dict], validation: list[dict], inverse_penalty: float, unclear_below: float
            ) -> "LocalRouter":
        """train fits the regression, validation its calibration. Rows: `text` and `label`."""
        characters, words = vectorizers()
        texts = [row["text"] for row in train]
        features = hstack([characters.fit_transform(texts), words.fit_transform(texts)]).tocsr()
        model = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=1000)
        model.fit(features, [row["label"] == "shopping" for row in train])
        router = cls(characters, words, model.coef_[0].astype(np.float32), float(model.intercept_[0]), 1.0, 0.0,
                     unclear_below)
        router.slope, router.offset = platt(router.scores([row["text"] for row in validation]),
                                            np.array([row["label"] == "shopping" for row in validation]))
        return router

    def features(self, texts: list[str]) -> csr_matrix:
        return hstack([self.characters.transform(texts), self.words.transform(texts)]).tocsr()

    def scores(self, texts: list[str]) -> np.ndarray:
        """Distance from the boundary, positive on the side of shopping, one a text."""
        return self.features(texts) @ self.weights + self.bias

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Calibrated probability of shopping, one a text."""
        return expit(self.slope * self.scores(texts) + self.offset)

    def __call__(self, text: str) -> Decision:
        shopping = float(self.probabilities([text])[0])
        label = LABELS[shopping >= 0.5]
        return Decision(label if max(shopping, 1 - shopping) >= self.unclear_below else "unclear", shopping)

    def save(self, folder: Path) -> None:
        vocabularies = {}
        for name, vectorizer in (("characters", self.characters), ("words", self.words)):
            vocabularies[name] = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.get)
        write_json(folder / "vocabulary.json", vocabularies | {"unclear_below": self.unclear_below})
        save_file({"characters": self.characters.idf_, "words": self.words.idf_, "weights": self.weights,
                   "calibration": np.array([self.bias, self.slope, self.offset])}, folder / "router.safetensors")

    @classmethod
    def load(cls, folder: Path | str) -> "LocalRouter":
        """Reads what `save` wrote. Raises Problem if it is not there or damaged."""
        folder = Path(folder)
        if not (folder / "router.safetensors").is_file():
            raise Problem(f"{folder} holds no router. `dvc repro router` trains it.")
        try:
            saved, arrays = read_json(folder / "vocabulary.json"), load_file(folder / "router.safetensors")
        except SafetensorError as error:
            raise Problem(f"{folder / 'router.safetensors'} is damaged ({error}). Delete {folder} and run "
                          "`dvc repro router`.") from error
        fitted = []
        for name, vectorizer in zip(("characters", "words"), vectorizers(), strict=True):
            vectorizer.set_params(vocabulary={gram: i for i, gram in enumerate(saved[name])})
            vectorizer.idf_ = arrays[name]
            fitted.append(vectorizer)
        bias, slope, offset = (float(value) for value in arrays["calibration"])
        return cls(*fitted, arrays["weights"], bias, slope, offset, saved["unclear_below"])
