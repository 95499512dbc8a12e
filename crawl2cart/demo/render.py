"""The conversation as HTML, by turn.html.j2, which escapes every text of customers, models and tools. No other host is named."""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from crawl2cart.demo.sessions import Chat, Response, Turn
from crawl2cart.shop.tools import Call

BY = {"agent": "Shop assistant", "gpt": "GPT-4", "shop": "Shop"}
LABELS = {"shopping": "Shopping", "other": "Not shopping", "unclear": "Unclear"}
SOURCES = {"gpt": "GPT-4", "local": "local router"}
DONE = {
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


def pretty(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def brief(value: object) -> str:
    """An argument in a line."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def call_view(call: Call) -> dict:
    """What a call shows folded (name, arguments in a line, what came of it) and unfolded (both as JSON)."""
    result = call.result
    if "error" in result:
        outcome = str(result["error"]).replace("_", " ")
    elif "results" in result:
        outcome = f"{len(result['results'])} found"
    else:
        outcome = "done"
    return {
        "name": call.name,
        "line": " · ".join(f"{name} {brief(value)}" for name, value in call.arguments.items()),
        "outcome": outcome,
        "failed": "error" in result,
        "arguments": pretty(call.arguments),
        "result": pretty(result),
    }


def cards(calls: tuple[Call, ...]) -> list[dict]:
    """What the tools found, to be looked at: products, orders, sections of policies, changes made. A later look replaces an
    earlier one at the same product or order.
    """
    found: dict[tuple, dict] = {}
    for call in calls:
        result = call.result
        if "error" in result:
            continue
        for product in [*result.get("results", ()), *result.get("products", ())]:
            found["product", product["name"]] = {"kind": "product"} | product
        if call.name == "get_order":
            found["order", result["order"]] = {"kind": "order"} | result
        elif call.name == "get_policy" and "text" in result:
            found["policy", result["topic"], result["section"]] = {"kind": "policy"} | result
        elif call.name in DONE:
            found["change", result["order"]] = {"kind": "change", "done": DONE[call.name]} | result
    return list(found.values())


def route_line(part: Response) -> str:
    """Where the query went and why: `Shopping · GPT-4, 90 % sure · because of a parcel`."""
    route = part.route
    if route is None or route.source not in SOURCES:
        return ""
    return f"{LABELS[route.label]} · {SOURCES[route.source]}, {round(100 * route.confidence)} % sure · {route.why}"


def part_view(part: Response, compared: bool) -> dict:
    answer, calls = part.answer, part.calls
    return {
        "name": part.name if compared else BY[answer.by] if answer else "",
        "by": answer.by if answer else "",
        "text": part.text,
        "route": route_line(part),
        "went": part.route.label if part.route else "",
        "calls": [call_view(call) for call in calls],
        "cards": cards(calls),
        "done": answer is not None,
        "failed": bool(answer and answer.failed),
        "problem": answer.problem if answer else None,
        "seconds": part.seconds,
        "judged": bool(part.prompt),
        "liked": part.liked,
    }


def turn_html(turn: Turn, number: int) -> str:
    compared = len(turn.parts) > 1
    return ENVIRONMENT.get_template("turn.html.j2").render(
        number=number, query=turn.query, parts=[part_view(part, compared) for part in turn.parts]
    )


def welcome_html(title: str, text: str, examples: tuple[str, ...]) -> str:
    return ENVIRONMENT.get_template("welcome.html.j2").render(
        title=title, text=text, examples=examples
    )


def chat_html(chat: Chat | None) -> list[str]:
    """The HTML of each turn."""
    return [turn_html(turn, number) for number, turn in enumerate(chat.turns)] if chat else []
