"""A shop assistant by rules in the place of the language models; page, loop and store are real."""

import json
import re

from tests.servers.openai_server import Reply, completion

ORDER = re.compile(r"TB-\d{5}")
EMAIL = re.compile(r"\S+@[\w.]+\w")
PAUSE = 0.01  # seconds between pieces of a reply
SHOPPING = {
    "label": "shopping",
    "intent": "search",
    "confidence": 0.97,
    "reason": "a product, an order or a policy of this shop",
}
OTHER = {
    "label": "other",
    "intent": "out_of_scope",
    "confidence": 0.98,
    "reason": "geography, nothing of this shop",
}


def answer(body: dict, key: str) -> Reply:
    """Answer as GPT-4 the router, GPT-4 the assistant, or the agent, as the request asks."""
    if "response_format" in body:
        prompt = body["messages"][1]["content"]
        query = json.loads(re.search(r"<messages>(.*)</messages>", prompt, re.S)[1])[-1]
        decision = OTHER if "france" in query.casefold() else SHOPPING
        return Reply(completion(json.dumps(decision)))
    if "tools" not in body:
        return Reply(completion("Paris is the capital of France."), pause=PAUSE)
    return Reply(next_turn(body["messages"]), pause=PAUSE)


def call(name: str, **arguments: object) -> bytes:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return completion(None, tool_calls=[{"id": "1", "type": "function", "function": function}])


def next_turn(messages: list[dict]) -> bytes:
    """Choose a call by what the customer wrote, or put a tool's result into words."""
    queries = [message["content"] for message in messages if message["role"] == "user"]
    query, all_queries = queries[-1].casefold(), " ".join(queries)
    if messages[-1]["role"] == "tool":
        return completion(describe(json.loads(messages[-1]["content"]), query))
    replies = [m["content"] for m in messages if m["role"] == "assistant" and m["content"]]
    last_reply = replies[-1] if replies else ""
    order = (ORDER.findall(all_queries) or [""])[-1]
    email = (EMAIL.findall(all_queries) or [""])[-1]
    if query.startswith("yes") and "return" in last_reply:
        product = re.search(r"return the (.*?) of order", last_reply)[1]
        return call("return_items", order=order, products=[product])
    if "compare" in query:
        products = re.search(r"compare the (.*) and the (.*)", queries[-1]).groups()
        return call("get_products", products=products)
    if "more about the" in query:
        return call("get_products", products=[re.search(r"about the (.*)", queries[-1])[1]])
    if "how long" in query:
        return call("get_policy", topic="returns", section="1")
    if order and ("order" in query or "return" in query):
        return call("get_order", order=order, email=email)
    if "tent" in query:
        return call("search_products", category="tent", max_price=300, sort="rating")
    return completion("I can help with products, orders and returns. What do you need?")


def describe(result: dict, query: str) -> str:
    """Put a tool's result into words, for the customer's last query."""
    if "error" in result:
        return f"I could not do that: {result['error'].replace('_', ' ')}."
    if matches := result.get("results"):
        best = matches[0]
        return (
            f"Yes, there are {len(matches)}. The best rated is the {best['name']} at "
            f"${best['price']}, rated {best['rating']}. Shall I compare two of them for you?"
        )
    if products := result.get("products"):
        return describe_products(products, result.get("review"))
    if "returned" in result:
        return (
            f"Done. Your return of the {result['returned'][0]} is open, and ${result['refund']} "
            "will come back to you."
        )
    if "section" in result:
        source = f"section {result['section']} of our policy on {result['topic'].lower()}"
        return f"{result['text']} That is {source}."
    if "return" in query:
        product = result["items"][0]["product"]
        return (
            f"You would return the {product} of order {result['order']}. Shall I open that return?"
        )
    return f"Order {result['order']} is {result['state']}, in all ${result['total']}."


def describe_products(products: list[dict], review: str | None) -> str:
    if len(products) == 2:
        one, two = products
        return (
            f"The {one['name']} is ${one['price']}, rated {one['rating']}; "
            f"the {two['name']} is ${two['price']}, rated {two['rating']}."
        )
    quote = f" One customer writes: {review}" if review else ""
    return f"The {products[0]['name']} costs ${products[0]['price']}.{quote}"
