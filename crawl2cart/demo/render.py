"""Render a conversation as HTML with turn.html.j2.

The template escapes every text of customers, models and tools, and names no other host.
"""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from crawl2cart.demo.sessions import Chat, Response, Turn
from crawl2cart.shop.tools import Call

AUTHORS = {"agent": "Shop assistant", "gpt": "GPT-4", "shop": "Shop"}
LABELS = {"shopping": "Shopping", "other": "Not shopping", "unclear": "Unclear"}
SOURCES = {"gpt": "GPT-4", "local": "local router"}
CHANGES = {
    "cancel_order": "Order cancelled",
    "return_items": "Return opened",
    "exchange_item": "Exchange made",
    "change_address": "Address changed",
}
ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def pretty_json(value: object) -> str:
    """Return indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def argument_text(value: object) -> str:
    """Return an argument's value on one line."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def call_view(call: Call) -> dict:
    """Return what the page shows of a tool call.

    Folded: name, arguments on one line, outcome. Unfolded: arguments and result as JSON.
    """
    result = call.result
    if "error" in result:
        outcome = str(result["error"]).replace("_", " ")
    elif "results" in result:
        outcome = f"{len(result['results'])} found"
    else:
        outcome = "done"
    arguments = [f"{name} {argument_text(value)}" for name, value in call.arguments.items()]
    return {
        "name": call.name,
        "line": " · ".join(arguments),
        "outcome": outcome,
        "failed": "error" in result,
        "arguments": pretty_json(call.arguments),
        "result": pretty_json(result),
    }


def cards(calls: tuple[Call, ...]) -> list[dict]:
    """Return the products, orders, policy sections and changes that the calls returned.

    A later result about the same product or order replaces an earlier one.
    """
    by_subject: dict[tuple, dict] = {}
    for call in calls:
        result = call.result
        if "error" in result:
            continue
        for product in [*result.get("results", ()), *result.get("products", ())]:
            by_subject["product", product["name"]] = {"kind": "product"} | product
        if call.name == "get_order":
            by_subject["order", result["order"]] = {"kind": "order"} | result
        elif call.name == "get_policy" and "text" in result:
            section = {"kind": "policy"} | result
            by_subject["policy", result["topic"], result["section"]] = section
        elif call.name in CHANGES:
            change = {"kind": "change", "done": CHANGES[call.name]} | result
            by_subject["change", result["order"]] = change
    return list(by_subject.values())


def route_line(response: Response) -> str:
    """Return where the query went and why: `Shopping · GPT-4, 90 % sure · a lost parcel`."""
    route = response.route
    if route is None or route.source not in SOURCES:
        return ""
    percent = round(100 * route.confidence)
    return f"{LABELS[route.label]} · {SOURCES[route.source]}, {percent} % sure · {route.why}"


def response_view(response: Response, compared: bool) -> dict:
    """Return what the page shows of a response. compared: it stands beside another model's."""
    answer, route = response.answer, response.route
    author = AUTHORS[answer.by] if answer else ""
    return {
        "name": response.name if compared else author,
        "by": answer.by if answer else "",
        "text": response.text,
        "route": route_line(response),
        "label": route.label if route else "",
        "calls": [call_view(call) for call in response.calls],
        "cards": cards(response.calls),
        "done": answer is not None,
        "failed": bool(answer and answer.failed),
        "problem": answer.problem if answer else None,
        "seconds": response.seconds,
        "can_be_rated": bool(response.prompt),
        "liked": response.liked,
    }


def turn_html(turn: Turn, number: int) -> str:
    """Return the HTML of one turn. number: its place in the chat, from 0."""
    compared = len(turn.responses) > 1
    responses = [response_view(response, compared) for response in turn.responses]
    template = ENVIRONMENT.get_template("turn.html.j2")
    return template.render(number=number, query=turn.query, responses=responses)


def welcome_html(title: str, text: str, examples: tuple[str, ...]) -> str:
    """Return the HTML of an empty chat, with examples to press."""
    template = ENVIRONMENT.get_template("welcome.html.j2")
    return template.render(title=title, text=text, examples=examples)


def chat_html(chat: Chat) -> list[str]:
    """Return the HTML of each turn."""
    return [turn_html(turn, number) for number, turn in enumerate(chat.turns)]
