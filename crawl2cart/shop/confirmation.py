"""The customer's consent to a change, read from the conversation and never from an argument that a model sets.

A write is consented to when the assistant's last reply asked about it and restated it (`restates`) and the customer's own next turn
says yes (`agrees`). Both lean to the safe side: a yes that is not understood costs one more question, a wrong one costs an order.
"""

import re
from collections.abc import Iterable

# What is a yes by itself. Longer phrases stand before shorter ones that they begin with.
YES = r"""(?:that'?s|that is|it'?s|it is|everything is|all of (?:it|that|this) is) (?:all )?(?:right|correct)
(?:i|we) (?:can |do |hereby )?(?:confirm|agree|consent|approve|accept)(?: it| that| this| to (?:it|that|this))?
you (?:got|read) it (?:right|correctly)|what you wrote is (?:right|correct)|(?:i'?m|i am) (?:quite )?(?:sure|certain|decided)(?: of it)?
you have my (?:permission|consent|approval)|permission granted|consider it (?:agreed|done)|(?:that'?s|that is) what i want(?:ed)?
(?:she|he|my \w+) says yes|it'?s a yes|(?:my|the) answer(?:'?s| is) yes|that'?s (?:it|the one|fine)|that is fine|sounds good|spot on
(?:let'?s )?do (?:it|that|this|so)|(?:please|yes) do(?: it| so)?|(?:start|register|update) (?:it|that|the return)|make it so
carry it out|carry on|crack on|get on with it|away you go|be my guest|go (?:on|ahead|for it)|go|proceed|by all means|of course
confirm(?:ed|ing)?|agreed|accepted|approved|affirmative|positive|certainly|absolutely|definitely|exactly that|exactly|precisely|indeed
perfect|quite so|right you are|sure thing|surely|sure|fine|right|correct|yes+|yep|yeah|yea|yup|ya|ye|aye|y|jep|si|oui|ja|okay|okey|oke
ok|k|100 ?%"""
# What changes nothing about a yes. Any other word may be a condition, a doubt or another wish.
BESIDE = r"""no problem|not a problem|no worries|don'?t worry|no need to (?:wait|ask)|no question|no objections?|no doubt|why not
without (?:a )?doubt|(?:i )?don'?t see why not|can'?t wait|can'?t hurt|(?:that'?s|that is) (?:my decision|the (?:place|office))
she'?s nodding|we talked it over|on behalf of the office|i'?d be glad if you did|i'?d like that|i have read it|read it|that works
(?:thanks|thank you) for checking|thanks|thank you|(?:everything )?as (?:you (?:said|say|described|wrote it)|described)|if possible
with pleasure|(?:by|with|to|from|for) me|to all of it|(?:(?:it|that) is|(?:i|we) do)(?=\W*$)|just that|that one|this one|that order
this order|the whole thing|please|pls|plz|kindly|sir|madam|mate|oh|ah|and|so|then|now|too|also|very|quite|all|good|great|lovely|alright
obviously|accordingly|quickly|today|twice|the|my|order|from|to|in|for"""
# The shop's customers say these beside a yes to any change: to what was asked, whatever they call it.
ANYWAY = "take it back|send it there|change it|cancel(?: it)?|void it|kill it|halt it|bail"
# Verbs that ask for the write itself, and what may stand behind them: "swap it" is a yes to an exchange and to nothing else.
VERBS = {
    "cancel_order": ("cancel|undo|void|kill|bin|call", "off|in full"),
    "exchange_item": ("swap|exchange|switch|trade|replace", "away"),
    "return_items": ("return|take|send|collect|fetch|start", "back|the return"),
    "change_address": ("change|redirect|send|ship|reroute|use|update", "there"),
}


def any_of(phrases: str) -> re.Pattern:
    """Matches one of the phrases, which stand between bars and line ends, as whole words."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases.splitlines())})(?!\w)")


consents = any_of(YES)
asks = {
    action: any_of(rf"(?:{verbs}) (?:(?:it|them|that one|this one)(?: (?:{behind}))?|{behind})")
    for action, (verbs, behind) in VERBS.items()
}
beside = {None: any_of(f"{YES}\n{ANYWAY}\n{BESIDE}")} | {
    action: any_of(f"{YES}\n{ANYWAY}\n(?:{verbs})(?: (?:it|them))?(?: (?:{behind}))?\n{BESIDE}")
    for action, (verbs, behind) in VERBS.items()
}
# What makes a reply a question before a change: "ok" to the status of an order, which states its total, too, is no consent.
ASKS = re.compile(
    r"\?|(?:^|[.!] )confirm\b[^.]*:|\b(?:say yes|(?:please|you|to) confirm|consent|approval|approve|agree)\b"
)
# Questions that ask for no such thing: "Can I help you with anything else?"
OTHER = re.compile(
    r"(?:^|(?<=[.?!]))[^.?!]*\b(?:anything|something|help|know|see|hear|tell|show)\b[^.?!]*\?"
    r"|(?:^|(?<=[.?!] ))(?:what|who|how|where|when)\b[^.?!]*\?"
)
# A no or a choice. To which half of "Keep this and return that?" a yes belongs is for people to say.
NO = re.compile(
    r"\b(?:no|not|cannot|never|nor|or|neither|without|except|unless|rather|keep\w*|leav\w*|stay\w*)\b|n['’]t\b"
)
HARMLESS = re.compile(
    r"\b(?:yes or no|no (?:problem|charge|cost|fee)s?|can(?:['’]t|not| not) be (?:undone|reversed)"
    r"|ha(?:s not|sn['’]t) (?:been )?shipped)\b"
)
MONEY = re.compile(
    r"\b(?:returns?|send back)(?: your)? \$|\$[\d.,]+ returns\b"
)  # it goes back where no goods do
# Words of one change and of no other.
OWN = {
    "cancel_order": r"cancel\w*|call(?:ing|ed)? off",
    "return_items": r"return\w*|send\w* back|labels?",
    "exchange_item": r"swap\w*|exchang\w*|switch\w*|replac\w*|reserv\w*|aside|version|into",
    "change_address": r"address\w*|redirect\w*|reroute\w*|driver",
}
# What the question has to speak of where order and goods alone leave it open.
NAMES = {
    "cancel_order": rf"{OWN['cancel_order']}|goes(?! to\b)",
    "return_items": rf"{OWN['return_items']}|back|collect\w*",
    "exchange_item": rf"{OWN['exchange_item']}|instead|chang\w*|(?:for|to) DETAIL",
    "change_address": "",
}


def pattern(fact: str) -> str:
    """A pattern of the fact as whole words, for texts without capitals and with single spaces."""
    return rf"(?<!\w){re.escape(' '.join(fact.casefold().split()))}(?!\w)"


def is_affirmation(text: str, action: str | None = None, restated: Iterable[str] = ()) -> bool:
    """Whether the customer's turn is a plain yes, or asks for this very write, in words that can mean nothing else, and is no question.

    restated: facts of the write that the turn may name again: "yes, cancel TB-48213".
    """
    text = " ".join(text.casefold().replace("’", "'").split())
    for fact in restated:
        text = re.sub(pattern(fact), " ", text)
    asked = action and asks[action].search(text)
    return (
        bool(asked or consents.search(text))
        and "?" not in text
        and not re.search(r"\w", beside[action].sub(" ", text))
    )


def contains_phrase(text: str, fact: str) -> bool:
    """Whether the text holds the fact as whole words, whatever its case and spaces."""
    return re.search(pattern(fact), " ".join(text.casefold().split())) is not None


def contains_address(text: str, address: str) -> bool:
    """Whether the text holds an address that is not cut out of a longer one: "Velby 40243" is not "1 Row, Velby 40243"."""
    words, wanted = " ".join(text.split()), " ".join(address.split())
    places = (
        re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", words, re.IGNORECASE) if wanted else ()
    )
    return any(
        not re.search(r"[A-Z0-9][\w'-]*,? $", words[: found.start()])
        and not re.match(r",? [A-Z0-9]", words[found.end() :])
        for found in places
    )


def short(name: str) -> str:
    """The first two words of a product's name, which no other product shares, in small letters."""
    return " ".join(name.casefold().split()[:2])


def requests_confirmation(
    text: str,
    action: str,
    order: str,
    total: str,
    products: list[tuple[str, list[str]]] = (),
    detail: str = "",
) -> bool:
    """Whether the assistant's reply asks for a yes to this write and to no other, and states everything that it would do.

    products: each name with the names of its other variants, of which a return names none and an exchange only the new one.
    detail: the new variant or address. A cancellation is known by the order's total, which no other write restates.
    """
    named = bool(products) and all(contains_phrase(text, short(name)) for name, _ in products)
    match action:
        case "cancel_order":
            stated = contains_phrase(text, total)
        case "change_address":
            stated = contains_address(text.replace(order, ""), detail)
        case "return_items":
            stated = named
        case "exchange_item":
            stated = named and contains_phrase(text, detail)
        case _:
            raise ValueError(f"{action} is not a write")
    if not stated:
        return False
    said = " ".join(text.casefold().split())
    orders = re.findall(re.sub(r"\d+", lambda _: r"\d+", pattern(order)), said)
    # The words around the facts: "marigold" may be a colour and part of a name, and "Return Lane" is a street.
    for fact in (order, *(fact for name, _ in products for fact in (name, short(name)))):
        said = re.sub(pattern(fact), " ", said)
    # The longest first: who says "matte black" has not said "black".
    for variant in sorted(
        {detail, *(variant for _, others in products for variant in others)} - {""},
        key=len,
        reverse=True,
    ):
        if variant.casefold() == detail.casefold():
            said = re.sub(pattern(detail), "DETAIL", said)
        elif contains_phrase(said, variant):
            return False
    said = HARMLESS.sub(" ", MONEY.sub(" ", said))
    others = [words for other, words in OWN.items() if other != action]
    return (
        set(orders) == {order.casefold()}
        and ASKS.search(OTHER.sub(" ", said)) is not None
        and re.search(rf"\b(?:{NAMES[action]})\b", said) is not None
        and not NO.search(said)
        and not re.search(rf"\b(?:{'|'.join(others)})\b", said)
    )
