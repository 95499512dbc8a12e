"""Decide whether the customer has confirmed a change, from the conversation alone.

A write is confirmed when the assistant's last reply asks for a yes and restates the whole change
(`requests_confirmation`), and the customer's next turn says yes (`is_affirmation`). Both err on the
safe side: a missed yes costs one more question, a wrong one costs an order.
"""

import re
from collections.abc import Iterable

# What is a yes by itself, one phrase between two bars or line ends. A longer phrase stands before
# a shorter one that it begins with.
YES = r"""
(?:that'?s|that is|it'?s|it is|everything is|all of (?:it|that|this) is) (?:all )?(?:right|correct)
(?:i|we) (?:can |do |hereby )?(?:confirm|agree|consent|approve|accept)(?: (?:to )?(?:it|that|this))?
you (?:got|read) it (?:right|correctly)|what you wrote is (?:right|correct)
(?:i'?m|i am) (?:quite )?(?:sure|certain|decided)(?: of it)?
you have my (?:permission|consent|approval)|permission granted|consider it (?:agreed|done)
(?:that'?s|that is) what i want(?:ed)?|(?:she|he|my \w+) says yes|it'?s a yes
(?:my|the) answer(?:'?s| is) yes|that'?s (?:it|the one|fine)|that is fine|sounds good|spot on
(?:let'?s )?do (?:it|that|this|so)|(?:please|yes) do(?: it| so)?
(?:start|register|update) (?:it|that|the return)|make it so|carry it out|carry on|crack on
get on with it|away you go|be my guest|go (?:on|ahead|for it)|go|proceed|by all means|of course
confirm(?:ed|ing)?|agreed|accepted|approved|affirmative|positive|certainly|absolutely|definitely
exactly that|exactly|precisely|indeed|perfect|quite so|right you are|sure thing|surely|sure|fine
right|correct|yes+|yep|yeah|yea|yup|ya|ye|aye|y|jep|si|oui|ja|okay|okey|oke|ok|k|100 ?%
"""
# What changes nothing about a yes. Any other word may be a condition, a doubt or another wish.
BESIDE = r"""
no problem|not a problem|no worries|don'?t worry|no need to (?:wait|ask)|no question
no objections?|no doubt|why not|without (?:a )?doubt|(?:i )?don'?t see why not|can'?t wait
can'?t hurt|(?:that'?s|that is) (?:my decision|the (?:place|office))|she'?s nodding
we talked it over|on behalf of the office|i'?d be glad if you did|i'?d like that|i have read it
read it|that works|(?:thanks|thank you) for checking|thanks|thank you
(?:everything )?as (?:you (?:said|say|described|wrote it)|described)|if possible|with pleasure
(?:by|with|to|from|for) me|to all of it|(?:(?:it|that) is|(?:i|we) do)(?=\W*$)|just that|that one
this one|that order|this order|the whole thing|please|pls|plz|kindly|sir|madam|mate|oh|ah|and|so
then|now|too|also|very|quite|all|good|great|lovely|alright|obviously|accordingly|quickly|today
twice|the|my|order|from|to|in|for
"""
# Said beside a yes to any change: the customer means what was asked, whatever they call it.
BESIDE_ANY = "take it back|send it there|change it|cancel(?: it)?|void it|kill it|halt it|bail"
# Verbs that ask for the write itself, and what may stand behind them. "swap it" is a yes to an
# exchange and to nothing else.
VERBS = {
    "cancel_order": ("cancel|undo|void|kill|bin|call", "off|in full"),
    "exchange_item": ("swap|exchange|switch|trade|replace", "away"),
    "return_items": ("return|take|send|collect|fetch|start", "back|the return"),
    "change_address": ("change|redirect|send|ship|reroute|use|update", "there"),
}


def any_of(*phrases: str) -> re.Pattern:
    """Compile a pattern for one of the phrases as whole words; bars or line ends part them."""
    alternatives = [line for text in phrases for line in text.strip().splitlines()]
    return re.compile(rf"(?<!\w)(?:{'|'.join(alternatives)})(?!\w)")


YES_PATTERN = any_of(YES)
REQUEST_PATTERNS = {
    write: any_of(rf"(?:{verbs}) (?:(?:it|them|that one|this one)(?: (?:{behind}))?|{behind})")
    for write, (verbs, behind) in VERBS.items()
}
# Everything that a yes to a write may consist of.
YES_PARTS = {None: any_of(YES, BESIDE_ANY, BESIDE)} | {
    write: any_of(YES, BESIDE_ANY, rf"(?:{verbs})(?: (?:it|them))?(?: (?:{behind}))?", BESIDE)
    for write, (verbs, behind) in VERBS.items()
}
# What makes a reply a question before a change. "ok" to the status of an order, which states its
# total as well, confirms nothing.
QUESTION = re.compile(
    r"\?|(?:^|[.!] )confirm\b[^.]*:"
    r"|\b(?:say yes|(?:please|you|to) confirm|consent|approval|approve|agree)\b"
)
# Questions that ask for no confirmation: "Can I help you with anything else?"
OTHER_QUESTION = re.compile(
    r"(?:^|(?<=[.?!]))[^.?!]*\b(?:anything|something|help|know|see|hear|tell|show)\b[^.?!]*\?"
    r"|(?:^|(?<=[.?!] ))(?:what|who|how|where|when)\b[^.?!]*\?"
)
# A no or a choice. Nobody can say which half of "Keep this and return that?" a yes is for.
NO_OR_CHOICE = re.compile(
    r"\b(?:no|not|cannot|never|nor|or|neither|without|except|unless|rather|keep\w*|leav\w*|stay\w*)\b"
    r"|n['’]t\b"
)
# Phrases with a "no" or an "or" that is none.
HARMLESS = re.compile(
    r"\b(?:yes or no|no (?:problem|charge|cost|fee)s?|can(?:['’]t|not| not) be (?:undone|reversed)"
    r"|ha(?:s not|sn['’]t) (?:been )?shipped)\b"
)
# Money goes back, goods do not.
REFUND = re.compile(r"\b(?:returns?|send back)(?: your)? \$|\$[\d.,]+ returns\b")
# Words of one write and of no other.
OWN_WORDS = {
    "cancel_order": r"cancel\w*|call(?:ing|ed)? off",
    "return_items": r"return\w*|send\w* back|labels?",
    "exchange_item": r"swap\w*|exchang\w*|switch\w*|replac\w*|reserv\w*|aside|version|into",
    "change_address": r"address\w*|redirect\w*|reroute\w*|driver",
}
# Words of which the question has to hold one, since order and goods alone leave the write open.
NAMING_WORDS = {
    "cancel_order": rf"{OWN_WORDS['cancel_order']}|goes(?! to\b)",
    "return_items": rf"{OWN_WORDS['return_items']}|back|collect\w*",
    "exchange_item": rf"{OWN_WORDS['exchange_item']}|instead|chang\w*|(?:for|to) DETAIL",
    "change_address": "",
}


def is_affirmation(text: str, write: str | None = None, restated: Iterable[str] = ()) -> bool:
    """Return whether the customer's turn is a plain yes to this write, and nothing else.

    write: the tool's name; None for a yes to whatever was asked. restated: facts of the write that
    the turn may name again ("yes, cancel TB-48213").
    """
    text = normalize(text.replace("’", "'"))
    for fact in restated:
        text = re.sub(phrase_pattern(fact), " ", text)
    requests_write = write and REQUEST_PATTERNS[write].search(text)
    says_yes = bool(requests_write or YES_PATTERN.search(text))
    return says_yes and "?" not in text and not re.search(r"\w", YES_PARTS[write].sub(" ", text))


def normalize(text: str) -> str:
    """Return the text in lower case with single spaces."""
    return " ".join(text.casefold().split())


def phrase_pattern(phrase: str) -> str:
    """Return a pattern for the phrase as whole words of a normalized text."""
    return rf"(?<!\w){re.escape(normalize(phrase))}(?!\w)"


def contains_phrase(text: str, phrase: str) -> bool:
    """Return whether the text holds the phrase as whole words, whatever its case and spaces."""
    return re.search(phrase_pattern(phrase), normalize(text)) is not None


def contains_address(text: str, address: str) -> bool:
    """Return whether the text holds a whole address, not one cut out of a longer one.

    "Velby 40243" is not "1 Row, Velby 40243".
    """
    text, address = " ".join(text.split()), " ".join(address.split())
    if not address:
        return False
    return any(
        not re.search(r"[A-Z0-9][\w'-]*,? $", text[: match.start()])
        and not re.match(r",? [A-Z0-9]", text[match.end() :])
        for match in re.finditer(rf"(?<!\w){re.escape(address)}(?!\w)", text, re.IGNORECASE)
    )


def short_name(name: str) -> str:
    """Return the first two words of a product's name in lower case; no two products share them."""
    return " ".join(name.casefold().split()[:2])


def requests_confirmation(
    text: str,
    write: str,
    order: str,
    total: str,
    products: list[tuple[str, list[str]]] = (),
    detail: str = "",
) -> bool:
    """Return whether a reply asks for a yes to this write and no other, and restates all of it.

    products: each name with its other variants, of which a return names none and an exchange only
    the new one. detail: the new variant or address. total: of the order; it marks a cancellation.
    """
    if not states_details(text, write, order, total, [name for name, _ in products], detail):
        return False
    text = normalize(text)
    orders = re.findall(re.sub(r"\d+", lambda _: r"\d+", phrase_pattern(order)), text)
    # "marigold" may be a colour and part of a name, and "Return Lane" is a street. So only the
    # words around the facts count.
    for fact in (order, *(fact for name, _ in products for fact in (name, short_name(name)))):
        text = re.sub(phrase_pattern(fact), " ", text)
    variants = {detail, *(variant for _, others in products for variant in others)} - {""}
    # The longest first: "matte black" does not name "black".
    for variant in sorted(variants, key=len, reverse=True):
        if variant.casefold() == detail.casefold():
            text = re.sub(phrase_pattern(detail), "DETAIL", text)
        elif contains_phrase(text, variant):
            return False
    text = HARMLESS.sub(" ", REFUND.sub(" ", text))
    words_of_others = [words for other, words in OWN_WORDS.items() if other != write]
    return (
        set(orders) == {order.casefold()}
        and QUESTION.search(OTHER_QUESTION.sub(" ", text)) is not None
        and re.search(rf"\b(?:{NAMING_WORDS[write]})\b", text) is not None
        and not NO_OR_CHOICE.search(text)
        and not re.search(rf"\b(?:{'|'.join(words_of_others)})\b", text)
    )


def states_details(
    text: str, write: str, order: str, total: str, products: list[str], detail: str
) -> bool:
    """Return whether a reply states what this write changes, beside the order's number."""
    names_products = bool(products) and all(
        contains_phrase(text, short_name(name)) for name in products
    )
    match write:
        case "cancel_order":
            return contains_phrase(text, total)
        case "change_address":
            return contains_address(text.replace(order, ""), detail)
        case "return_items":
            return names_products
        case "exchange_item":
            return names_products and contains_phrase(text, detail)
    raise ValueError(f"{write} is not a write")
