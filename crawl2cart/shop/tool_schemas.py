"""The ten tools as a model sees them: their names and the JSON schemas of their arguments."""

import json

from jsonschema import Draft202012Validator

WRITES = ("cancel_order", "return_items", "exchange_item", "change_address")

STRING, NUMBER = {"type": "string"}, {"type": "number"}
PRODUCTS = {"type": "array", "items": STRING, "minItems": 1, "maxItems": 3}


def tool(name: str, required: str = "", **properties: dict) -> dict:
    """Return a tool in the form of the OpenAI API.

    Without a description: the names suffice, and the prompt stays short.
    """
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": required.split(),
                "additionalProperties": False,
            },
        },
    }


TOOLS = [
    tool(
        "search_products",
        query=STRING,
        category=STRING,
        brand=STRING,
        min_price=NUMBER,
        max_price=NUMBER,
        variant=STRING,
        sort={"type": "string", "enum": ["rating", "price_low", "price_high"]},
    ),
    tool("get_products", "products", products=PRODUCTS),
    tool("list_orders"),
    tool("get_order", "order", order=STRING, email=STRING),
    tool("cancel_order", "order", order=STRING),
    tool("return_items", "order products", order=STRING, products=PRODUCTS),
    tool("exchange_item", "order product variant", order=STRING, product=STRING, variant=STRING),
    tool("change_address", "order address", order=STRING, address=STRING),
    tool("get_policy", "topic", topic=STRING, section=STRING),
    tool("hand_off", "reason", reason=STRING),
]
NAMES = tuple(entry["function"]["name"] for entry in TOOLS)
VALIDATORS = {
    entry["function"]["name"]: Draft202012Validator(entry["function"]["parameters"])
    for entry in TOOLS
}


def compact(value: object) -> str:
    """Return JSON as tools return it and calls write it: no spaces, letters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def is_valid_call(call: dict) -> bool:
    """Return whether a call names a tool and its arguments fit the tool's schema."""
    return call["name"] in VALIDATORS and VALIDATORS[call["name"]].is_valid(call["arguments"])
