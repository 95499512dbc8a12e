"""Answer turns without a language model, as baselines for the agents."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from crawl2cart.lm.formats import harmony
from crawl2cart.shop.tool_schemas import compact

# (examples, training examples) -> the harmony text of the assistant's turn for each example.
Baseline = Callable[[Sequence[dict], Sequence[dict]], list[str]]

ORDER = re.compile(r"\b[A-Z]{2}-\d{5}\b", re.IGNORECASE)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
PRICE = re.compile(
    r"(?:under|below|less than|up to|max|within|over|above|for)\D{0,12}(\d+(?:\.\d+)?)",
    re.IGNORECASE,
)
PRODUCT = re.compile(r"\b[A-Z]{3}-\d{4}\b|\b[A-Z][a-z]+ [A-Z][a-z]+\b")
# The first pattern that matches the customer's text chooses the tool.
KEYWORDS = {
    "get_policy": (
        r"polic|how long do|do you (offer|accept|take|have a rule)|gift card|price match"
        r"|shipping cost|privacy"
    ),
    "get_order": (
        r"order|parcel|package|where is|track|cancel|return|send back|refund|exchange|swap"
        r"|address|deliver"
    ),
    "get_products": (
        r"in stock|how much|price of|cost|warranty|compare|difference|versus|\bvs\b|better"
        r"|made of|weigh|left"
    ),
    "hand_off": r"complain|a person|human|manager|terrible|disgrace",
    "search_products": r".",
}


def _call(name: str, **arguments: object) -> str:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return harmony.completion({"role": "assistant", "content": "", "tool_calls": [call]})


def keyword_rules(examples: Sequence[dict], train: Sequence[dict]) -> list[str]:
    """Choose the tool by keywords in the customer's messages, and its arguments by patterns."""
    return [
        call_by_keywords(
            "\n".join(
                message["content"] for message in example["prompt"] if message["role"] == "user"
            )
        )
        for example in examples
    ]


def call_by_keywords(text: str) -> str:
    """Return the call that the keywords and patterns of a text give."""
    order, email, price = ORDER.search(text), EMAIL.search(text), PRICE.search(text)
    name = next(name for name, pattern in KEYWORDS.items() if re.search(pattern, text.casefold()))
    if name == "get_order" and order:
        return _call("get_order", order=order[0].upper(), **({"email": email[0]} if email else {}))
    if name == "get_order":
        return _call("list_orders")
    if name == "get_products":
        return _call("get_products", products=PRODUCT.findall(text)[:3])
    if name == "get_policy":
        return _call("get_policy", topic="returns")
    if name == "hand_off":
        return _call("hand_off", reason="complaint")
    limit = {"max_price": float(price[1])} if price else {}
    return _call("search_products", query=" ".join(text.split()[-2:]), **limit)


def majority_tool(examples: Sequence[dict], train: Sequence[dict]) -> list[str]:
    """Call the most frequent tool of the training turns with its most frequent arguments."""
    calls = [
        example["completion"][0]["tool_calls"][0]["function"]
        for example in train
        if example["completion"][0].get("tool_calls")
    ]
    name = Counter(call["name"] for call in calls).most_common(1)[0][0]
    calls = [call for call in calls if call["name"] == name]
    most_common = Counter(compact(call["arguments"]) for call in calls).most_common(1)[0][0]
    arguments = next(
        call["arguments"] for call in calls if compact(call["arguments"]) == most_common
    )
    return [_call(name, **arguments)] * len(examples)


def nearest(examples: Sequence[dict], train: Sequence[dict]) -> list[str]:
    """Copy the training turn whose last two messages are nearest (TF-IDF, cosine)."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(
        vectorizer.fit_transform(map(_recent, train))
    )
    queries = vectorizer.transform(map(_recent, examples))
    neighbours = index.kneighbors(queries, return_distance=False)[:, 0]
    return [harmony.completion(train[number]["completion"][0]) for number in neighbours]


def _recent(example: dict) -> str:
    return "\n".join(
        f"{message['role']} {message['content']}" for message in example["prompt"][-2:]
    )


BASELINES: dict[str, Baseline] = {
    "keyword_rules": keyword_rules,
    "majority_tool": majority_tool,
    "nearest": nearest,
}
