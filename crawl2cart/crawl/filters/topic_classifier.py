"""Whether a page is about things that people buy: which to choose, how they did, how to use, look after and mend them.

A logistic regression on the words of a text, TF-IDF with logarithmic counts and length 1 (Salton and Buckley 1988,
https://doi.org/10.1016/0306-4573(88)90021-0). What it has learnt is a number for each word, so a score can be added up
by hand.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

# Words by their first letters, which joins mend, mended and mending better than whole words would on so few pages.
# Any number counts as the same word: shops and tests have many.
WORD = re.compile(r"[a-z]+|\d+|\$")
LETTERS = 6
LEAST_PAGES = 2  # with a word; what stands on one page alone says nothing of others
INVERSE_PENALTY = 10.0
DIGITS = 6  # of a weight: what lies behind differs between processors


class Weights(NamedTuple):
    """What the regression has learnt. words: for each its inverse document frequency and its weight."""

    words: dict[str, tuple[float, float]]
    bias: float


def topic_words(text: str) -> list[str]:
    return ["0" if word.isdigit() else word[:LETTERS] for word in WORD.findall(text.lower())]


def topic_score(text: str, weights: Weights) -> float:
    """The probability that a text is about things that people buy. A text without a known word gets what the bias says."""
    square = total = 0.0
    for word, count in Counter(topic_words(text)).items():
        if word in weights.words:
            rarity, weight = weights.words[word]
            value = (1 + math.log(count)) * rarity
            square += value * value
            total += value * weight
    return 1 / (1 + math.exp(-total / math.sqrt(square or 1) - weights.bias))


def learn_topic(texts: list[str], shopping: list[bool]) -> Weights:
    """The weights for labelled texts, of which some are about shopping and some are not; both sides count alike."""
    # Here, as `keep: all` needs none of it and importing it takes a second in each worker.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=topic_words, sublinear_tf=True, min_df=LEAST_PAGES)
    model = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", tol=1e-8, max_iter=1000)
    model.fit(vectorizer.fit_transform(texts), shopping)
    words = zip(
        vectorizer.get_feature_names_out().tolist(),
        vectorizer.idf_.tolist(),
        model.coef_[0].tolist(),
        strict=True,
    )
    return Weights(
        {word: (round(rarity, DIGITS), round(weight, DIGITS)) for word, rarity, weight in words},
        round(float(model.intercept_[0]), DIGITS),
    )
