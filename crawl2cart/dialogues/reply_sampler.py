"""Draw the assistant's sentences: hand-written reply templates of one style, filled with values."""

import random
import re

from crawl2cart.shop.data_model import Register, Reply

# What a reply can do, and the slots that every template of that act holds.
ACTS = {
    "search_found": "count categories",
    "search_item": "product id price rating",
    "search_none": "categories",
    "search_next": "",
    "facts": "product attribute value",
    "facts_missing": "product attribute",
    "compare_line": "product price rating",
    "compare_verdict": "product reason",
    "recommend": "product price rating",
    "stock_in": "product variant stock",
    "stock_out": "product variant",
    "stock_other": "variant stock",
    "price": "product price",
    "warranty": "product months",
    "order_placed": "order total",
    "order_packed": "order",
    "order_shipped": "order carrier tracking expected",
    "order_delayed": "order expected",
    "order_delivered": "order delivered",
    "order_partly_returned": "order",
    "order_cancelled": "order",
    "ask_order": "",
    "ask_email": "",
    "ask_variant": "product",
    "ask_address": "",
    "ask_product": "",
    "wrong_identity": "",
    "cancel_confirm": "order total",
    "cancel_done": "order total",
    "cancel_refused": "order state",
    "return_confirm": "order product",
    "return_done": "order product refund",
    "return_refused": "order product why",
    "exchange_confirm": "order product variant",
    "exchange_done": "order product variant",
    "exchange_refused": "order product why",
    "address_confirm": "order address",
    "address_done": "order address",
    "address_refused": "order state",
    "kept": "order",
    "policy": "section title text",
    "complaint": "",
    "handed_off": "",
    "unanswerable": "",
    "out_of_scope": "",
    "tool_error": "",
    "thanks": "",
    "product_unknown": "product",
}
# Slots whose value gets a capital at the start of a sentence. Names and numbers stay as they are.
CAPITALISED = ("attribute", "categories", "variant", "reason", "why")


class ReplySampler:
    """Draws reply templates of one style; none of an act repeats before all of them were used."""

    def __init__(self, replies: list[Reply], style: Register, rng: random.Random):
        self.style, self._rng = style, rng
        self._templates: dict[str, list[str]] = {}
        for reply in replies:
            if reply.voice == style:
                self._templates.setdefault(reply.act, []).append(reply.text)
        self._unused: dict[str, list[str]] = {}

    def pick(self, act: str) -> str:
        """Draw a template of an act, with its slots still open."""
        if not self._unused.get(act):
            templates = self._templates[act]
            self._unused[act] = self._rng.sample(templates, len(templates))
        return self._unused[act].pop()

    def __call__(self, act: str, **values: object) -> str:
        """Draw a template of an act and fill its slots."""
        return fill(self.pick(act), **values)


def fill(template: str, **values: object) -> str:
    """Fill the slots of a template; a value at the start of a sentence gets a capital."""

    def replacement(match: re.Match) -> str:
        before, slot = match.groups()
        text = str(values[slot])
        starts_sentence = match.start() == 0 or before
        if starts_sentence and slot in CAPITALISED:
            text = text[0].upper() + text[1:]
        return before + text

    return re.sub(r"((?:[.?!] )?)\{(\w+)\}", replacement, template)
