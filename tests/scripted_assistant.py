"""A shop assistant by rules, in the place of a language model: it calls the right tools and reads its replies off their results.

What it says is what a good model would; the page, the loop, the tools and the store are the real ones.
"""

import json
import re

from tests.servers.openai_server import Reply, completion

ORDER = re.compile(r"TB-\d{5}")
MAIL = re.compile(r"\S+@[\w.]+\w")
PAUSE = 0.01  # seconds between pieces of a reply


def answer(body: dict, key: str) -> Reply:
    """GPT-4's verdict, GPT-4's answer, or the assistant's next turn: by what the request asks for."""
    if "response_format" in body:
        asked = body["messages"][1]["content"]
        last = json.loads(re.search(r"<messages>(.*)</messages>", asked, re.S)[1])[-1]
        other = "france" in last.casefold()
        said = (
            {
                "label": "other",
                "intent": "out_of_scope",
                "confidence": 0.98,
                "reason": "geography, nothing of this shop",
            }
            if other
            else {
                "label": "shopping",
                "intent": "search",
                "confidence": 0.97,
                "reason": "a product, an order or a policy of this shop",
            }
        )
        return Reply(completion(json.dumps(said)))
    if "tools" not in body:
        return Reply(completion("Paris is the capital of France."), pause=PAUSE)
    return Reply(assistant(body["messages"]), pause=PAUSE)


def call(name: str, **arguments: object) -> bytes:
    return completion(
        None,
        tool_calls=[
            {
                "id": "1",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
        ],
    )


def assistant(messages: list[dict]) -> bytes:
    asked = [message["content"] for message in messages if message["role"] == "user"]
    text, last = asked[-1].casefold(), messages[-1]
    said = next(
        (
            message["content"]
            for message in reversed(messages)
            if message["role"] == "assistant" and message["content"]
        ),
        "",
    )
    known = " ".join(asked)
    order = (ORDER.findall(known) or [""])[-1]
    if last["role"] == "tool":
        return completion(reply(json.loads(last["content"]), text))
    if text.startswith("yes") and "return" in said:
        return call(
            "return_items", order=order, products=[re.search(r"return the (.*?) of order", said)[1]]
        )
    if "compare" in text:
        return call(
            "get_products", products=re.search(r"compare the (.*) and the (.*)", asked[-1]).groups()
        )
    if "more about the" in text:
        return call("get_products", products=[re.search(r"about the (.*)", asked[-1])[1]])
    if "how long" in text:
        return call("get_policy", topic="returns", section="1")
    if order and ("order" in text or "return" in text):
        return call("get_order", order=order, email=(MAIL.findall(known) or [""])[-1])
    if "tent" in text:
        return call("search_products", category="tent", max_price=300, sort="rating")
    return completion("I can help with products, orders and returns. What do you need?")


def reply(result: dict, text: str) -> str:
    if "error" in result:
        return f"I could not do that: {result['error'].replace('_', ' ')}."
    if "results" in result:
        first = result["results"][0]
        return (
            f"Yes, there are {len(result['results'])}. The best rated is the {first['name']} at ${first['price']}, "
            f"rated {first['rating']}. Shall I compare two of them for you?"
        )
    if "products" in result and len(result["products"]) == 2:
        one, two = result["products"]
        return f"The {one['name']} is ${one['price']}, rated {one['rating']}; the {two['name']} is ${two['price']}, rated {two['rating']}."
    if "products" in result:
        review = f" One customer writes: {result['review']}" if "review" in result else ""
        return (
            f"The {result['products'][0]['name']} costs ${result['products'][0]['price']}.{review}"
        )
    if "returned" in result:
        return f"Done. Your return of the {result['returned'][0]} is open, and ${result['refund']} will come back to you."
    if "section" in result:
        return f"{result['text']} That is section {result['section']} of our policy on {result['topic'].lower()}."
    if "return" in text:
        item = result["items"][0]
        return f"You would return the {item['product']} of order {result['order']}. Shall I open that return?"
    return f"Order {result['order']} is {result['state']}, in all ${result['total']}."
