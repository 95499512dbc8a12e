"""Classify a text as shopping or not: choosing, using, keeping and repairing things people buy.

A logistic regression on the words of a text: TF-IDF with logarithmic counts and vectors of length 1
(Salton and Buckley 1988, https://doi.org/10.1016/0306-4573(88)90021-0). A score can be added up by
hand from one weight for each word.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.embedded_web.sites import Page, gold_text

WORD = re.compile(r"[a-z]+|\d+|\$")
# A prefix joins mend, mended and mending, which matters with so few pages to learn from.
PREFIX_LETTERS = 6
MIN_PAGES = 2  # on which a word must stand to get a weight
C = 10.0  # scikit-learn's inverse strength of regularisation
DIGITS = 6  # of a weight; digits beyond differ between processors


class Weights(NamedTuple):
    """The parameters of the classifier.

    words: for each word its inverse document frequency and its weight. bias: the log-odds of a
    text without a known word.
    """

    words: dict[str, tuple[float, float]]
    bias: float


def topic_words(text: str) -> list[str]:
    """Split a text into word prefixes. All numbers are one word: shops and tests have many."""
    return ["0" if word.isdigit() else word[:PREFIX_LETTERS] for word in WORD.findall(text.lower())]


def topic_score(text: str, weights: Weights) -> float:
    """Return the probability that an English text is about things people buy."""
    square = total = 0.0
    for word, count in Counter(topic_words(text)).items():
        if word in weights.words:
            rarity, weight = weights.words[word]
            value = (1 + math.log(count)) * rarity
            square += value * value
            total += value * weight
    return 1 / (1 + math.exp(-total / math.sqrt(square or 1) - weights.bias))


def learn_from_sites(pages: list[Page], topics: dict[str, bool]) -> Weights:
    """Fit the classifier to the pages with a topic on sites that are not held out.

    topics: {url: whether the page is about shopping}. Raises UserError unless both topics occur.
    """
    learnt_from = [page for page in pages if page.url in topics and not page.site.held_out]
    if {topics[page.url] for page in learnt_from} != {True, False}:
        raise UserError(
            "data/web/topics.csv must name pages of both topics on sites that are not held out: "
            "filter.topic_filter learns from them. Add some, or set `topic_filter: all`."
        )
    texts = [gold_text(page) for page in learnt_from]
    return learn_topic(texts, [topics[page.url] for page in learnt_from])


def learn_topic(texts: list[str], shopping: list[bool]) -> Weights:
    """Fit the classifier to labelled texts; both classes count alike.

    Raises ValueError if all texts have one label.
    """
    # Imported here: it takes a second in each worker, and `topic_filter: all` does not need it.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=topic_words, sublinear_tf=True, min_df=MIN_PAGES)
    model = LogisticRegression(C=C, class_weight="balanced", tol=1e-8, max_iter=1000)
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
