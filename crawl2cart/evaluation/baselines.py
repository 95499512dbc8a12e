"""Agents that need no language model, to compare with: keyword rules, the commonest call, a copy of the nearest training turn."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from crawl2cart.lm.formats import harmony
from crawl2cart.shop.tool_schemas import compact

# The texts of the assistant's turns to rows of `to_examples`, after reading the rows of training.
Baseline = Callable[[Sequence[dict], Sequence[dict]], list[str]]

ORDER = re.compile(r"\b[A-Z]{2}-\d{5}\b", re.IGNORECASE)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
PRICE = re.compile(
    r"(?:under|below|less than|up to|max|within|over|above|for)\D{0,12}(\d+(?:\.\d+)?)",
    re.IGNORECASE,
)
PRODUCT = re.compile(r"\b[A-Z]{3}-\d{4}\b|\b[A-Z][a-z]+ [A-Z][a-z]+\b")
# The first that is found in what the customer said decides.
KEYWORDS = (
    (
        "get_policy",
        r"polic|how long do|do you (offer|accept|take|have a rule)|gift card|price match|shipping cost|privacy",
    ),
    (
        "get_order",
        r"order|parcel|package|where is|track|cancel|return|send back|refund|exchange|swap|address|deliver",
    ),
    (
        "get_products",
        r"in stock|how much|price of|cost|warranty|compare|difference|versus|\bvs\b|better|made of|weigh|left",
    ),
    ("hand_off", r"complain|a person|human|manager|terrible|disgrace"),
    ("search_products", r"."),
)


def call(name: str, **arguments: object) -> str:
    return harmony.completion(
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": name, "arguments": arguments}}
            ],
        }
    )


def last_user_message(row: dict) -> str:
    """All that the customer has said."""
    return "\n".join(message["content"] for message in row["prompt"] if message["role"] == "user")


def keyword_rules(rows: Sequence[dict], train: Sequence[dict]) -> list[str]:
    """A tool by keywords, its arguments by patterns."""
    return [by_keywords(last_user_message(row)) for row in rows]


def by_keywords(text: str) -> str:
    order, email, price, products = (
        ORDER.search(text),
        EMAIL.search(text),
        PRICE.search(text),
        PRODUCT.findall(text),
    )
    name = next(name for name, words in KEYWORDS if re.search(words, text.casefold()))
    if name == "get_order" and order:
        return call("get_order", order=order[0].upper(), **({"email": email[0]} if email else {}))
    if name == "get_order":
        return call("list_orders")
    if name == "get_products":
        return call("get_products", products=products[:3])
    if name == "get_policy":
        return call("get_policy", topic="returns")
    if name == "hand_off":
        return call("hand_off", reason="complaint")
    return call(
        "search_products",
        query=" ".join(text.split()[-2:]),
        **({"max_price": float(price[1])} if price else {}),
    )


def majority_tool(rows: Sequence[dict], train: Sequence[dict]) -> list[str]:
    """The commonest tool of training, with its commonest arguments."""
    calls = [
        row["completion"][0]["tool_calls"][0]["function"]
        for row in train
        if row["completion"][0].get("tool_calls")
    ]
    ((name, _),) = Counter(one["name"] for one in calls).most_common(1)
    common = Counter(compact(one["arguments"]) for one in calls if one["name"] == name).most_common(
        1
    )[0][0]
    arguments = next(
        one["arguments"]
        for one in calls
        if one["name"] == name and compact(one["arguments"]) == common
    )
    return [call(name, **arguments)] * len(rows)


def nearest(rows: Sequence[dict], train: Sequence[dict]) -> list[str]:
    """What the assistant did in the training turn whose last two messages are most like these (TF-IDF, cosine)."""
    texts = TfidfVectorizer(sublinear_tf=True, min_df=2)
    index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(
        texts.fit_transform(map(recent, train))
    )
    places = index.kneighbors(texts.transform(map(recent, rows)), return_distance=False)[:, 0]
    return [harmony.completion(train[place]["completion"][0]) for place in places]


def recent(row: dict) -> str:
    return "\n".join(f"{message['role']} {message['content']}" for message in row["prompt"][-2:])


BASELINES: dict[str, Baseline] = {
    "keyword_rules": keyword_rules,
    "majority_tool": majority_tool,
    "nearest": nearest,
}
