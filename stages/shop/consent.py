"""The customer's consent to a change, read from the conversation and never from an argument that a model sets.

A write is consented to when the assistant's last reply asked about it and restated it (`restates`) and the customer's own next turn
says yes (`agrees`). Both lean to the safe side: a yes that is not understood costs one more question, a wrong one costs an order.
"""

import re

# Turns of phrase with a negative word that refuse nothing.
HARMLESS = """no problem|no worries|no doubt|no need to wait|no need to ask|no question|why not|don'?t see why not|can'?t wait
not a problem|don'?t worry|no objections?|nothing against|if not,|can'?t hurt|no going back|without a doubt|without doubt
no,? that'?s right|no,? that'?s correct|no,? that'?s fine"""
# A refusal, or a doubt about this very change.
NO = """no|nope|nah|naw|not|never|don'?t|doesn'?t|won'?t|can'?t|isn'?t|wasn'?t|nor|nothing|stop|wait|hold|hang on|leave it|leave that
leave things|keep it|keep the|keep them|keep my|keep that|let me|changed my mind|second thoughts?|rather|forget|unless|until|later
maybe|perhaps|unsure|hmm+|think|thinking|before|but|instead|actually|different|wrong|cannot|nvm|never ?mind|oops|ask my|ask him|ask her"""
YES = """yes+|yep|yeah|yea|yup|ya|ye|aye|y|ok|okay|okey|oke|k|sure|surely|fine|good|great|perfect|right|correct|exactly|precisely|indeed
agreed?|accepted|confirm(?:ed|s|ing)?|affirmative|go|do it|do that|do so|proceed|carry on|carry it out|by all means|of course|certainly
absolutely|definitely|make it so|please|sounds good|that'?s it|that'?s the one|that'?s what i want(?:ed)?|consent|approved?|permission
granted|positive|be my guest|jep|si|oui|ja|consider it|get on with it|away you go|crack on|spot on|quite so|100 ?%"""


def any_of(phrases: str) -> re.Pattern:
    """Matches one of the phrases, which stand between bars and line ends, as whole words."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases.splitlines())})(?!\w)")


harmless, refuses, consents = map(any_of, (HARMLESS, NO, YES))
# Verbs that ask for the write itself: "swap it" is a yes to an exchange and to nothing else.
VERBS = {"cancel_order": "cancel|undo|scrap|bin|kill|drop|call off|halt", "return_items": "return|take|send|collect|fetch",
         "exchange_item": "swap|exchange|switch|trade|replace", "change_address": "change|redirect|send|ship|reroute|use|update"}
# What makes a reply a question before a change: "ok" to the status of an order, which states its total, too, is no consent.
ASKS = re.compile(r"\?|(?:^|[.!] )confirm\b[^.]*:|\b(?:say yes|(?:please|you|to) confirm|consent|approval|approve|agree)\b", re.IGNORECASE)
# Questions that ask for no such thing: "Can I help you with anything else?"
OTHER = re.compile(r"[^.?!]*\b(?:anything|something|help)\b[^.?!]*\?|(?:^|(?<=[.?!] ))(?:what|who|how|where|when)\b[^.?!]*\?",
                   re.IGNORECASE)
# What the question has to speak of where order and goods alone leave it open.
NAMES = {"cancel_order": re.compile(r"\b(cancel\w*|call(ing|ed)? off|goes)\b", re.IGNORECASE),
         "return_items": re.compile(r"\b(return\w*|back|label|collect\w*)\b", re.IGNORECASE)}


def agrees(text: str, action: str | None = None) -> bool:
    """Whether the customer's turn is a plain yes, or asks for this very write: a word of consent, none of doubt, and no question."""
    text = text.casefold().replace("’", "'")
    text = harmless.sub(" ok ", text)
    asks = action and re.search(rf"^\W*({VERBS[action]})\W+(it|them|away|back|there|this one|that one|the \w+)\b", text)
    return bool(asks or consents.search(text)) and not refuses.search(text) and "?" not in text


def holds(text: str, fact: str) -> bool:
    """Whether the text holds the fact as whole words, whatever its case and spaces."""
    squeezed = " ".join(fact.casefold().split())
    return re.search(rf"(?<!\w){re.escape(squeezed)}(?!\w)", " ".join(text.casefold().split())) is not None


def whole(text: str, address: str) -> bool:
    """Whether the text holds an address that is not cut out of a longer one: "Velby 40243" is not "1 Row, Velby 40243"."""
    words, wanted = " ".join(text.split()), " ".join(address.split())
    places = re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", words, re.IGNORECASE) if wanted else ()
    return any(not re.search(r"[A-Z0-9][\w'-]*,? $", words[:found.start()]) and not re.match(r",? [A-Z0-9]", words[found.end():])
               for found in places)


def short(name: str) -> str:
    """The first two words of a product's name, which no other product shares, in small letters."""
    return " ".join(name.casefold().split()[:2])


def restates(text: str, action: str, order: str, total: str, products: list[tuple[str, list[str]]] = (), detail: str = "") -> bool:
    """Whether the assistant's reply asks for a yes and states everything that this write would do.

    products: each name with the names of its other variants, which would make a return an exchange. detail: the new variant or
    address. A cancellation is known by the order's total, which no other write restates.
    """
    if not holds(text, order) or not ASKS.search(OTHER.sub(" ", text)) or action in NAMES and not NAMES[action].search(text):
        return False
    named = all(holds(text, short(name)) for name, _ in products)
    match action:
        case "cancel_order":
            return holds(text, total)
        case "return_items":
            rest = text.casefold()
            for name, _ in products:
                rest = rest.replace(name.casefold(), " ").replace(short(name), " ")  # "marigold" may be a colour and part of the name
            others = any(holds(rest, variant) for _, variants in products for variant in variants)
            return named and not others and not re.search(r"\b(cancel|call off|exchang|swap|replace)", text.casefold())
        case "exchange_item":
            return named and holds(text, detail)
        case "change_address":
            return whole(text.replace(order, ""), detail)
    raise ValueError(f"{action} is not a write")
