"""The customer's consent to a change, read from the conversation and never from an argument that a model sets.

A write is consented to when the assistant's last reply restated it (`restates`) and the customer's own next turn says yes
(`agrees`). Both lean to the safe side: a yes that is not understood costs one more question, a wrong one costs an order.
"""

import re

# Turns of phrase with a negative word that refuse nothing.
HARMLESS = r"no problem|no worries|no doubt|no need to (wait|ask)|no question|why not|don'?t see why not|can'?t wait|not a problem|" \
           r"don'?t worry|no objections?|nothing against|if not,|can'?t hurt|no going back|without (a )?doubt|no,? that'?s (right|correct|fine)"
NO = r"\b(no|nope|nah|naw|not|never|don'?t|doesn'?t|won'?t|can'?t|isn'?t|wasn'?t|nor|nothing|stop|wait|hold|hang on|leave it|leave (that|things)|" \
     r"keep it|keep (the|them|my|that)|let me|changed my mind|second thoughts?|rather|forget|unless|until|later|maybe|perhaps|unsure|hmm+|" \
     r"think|thinking|before|but|instead|actually|different|wrong|cannot|dont|doesnt|wont|cant|isnt|nvm|never ?mind|oops|ask (my|him|her))\b"
YES = r"\b(yes|yess+|yep|yeah|yea|yup|ya|ye|aye|y|ok|okay|okey|oke|k|sure|surely|fine|good|great|perfect|right|correct|exactly|precisely|indeed|" \
      r"agreed?|accepted|confirm(ed|s|ing)?|affirmative|go ahead|go on|go for it|go|please do|do (it|that|so)|proceed|carry on|carry it out|" \
      r"by all means|of course|certainly|absolutely|definitely|make it so|please|sounds good|that'?s (it|the one|what i want(ed)?)|consent|" \
      r"approved?|permission|granted|positive|yours to do|be my guest|jep|si|oui|ja|consider it|get on with it|away you go|crack on|spot on|quite so)\b|\b100 ?%"


def agrees(text: str) -> bool:
    """Whether the customer's turn is a plain yes: a word of consent, none of doubt, and no question."""
    text = text.casefold().replace("’", "'")
    text = re.sub(rf"\b({HARMLESS})", " ok ", text)
    return bool(re.search(YES, text)) and not re.search(NO, text) and "?" not in text


def holds(text: str, fact: str) -> bool:
    """Whether the text holds the fact as whole words, whatever its case and spaces."""
    squeezed = " ".join(fact.casefold().split())
    return re.search(rf"(?<!\w){re.escape(squeezed)}(?!\w)", " ".join(text.casefold().split())) is not None


def restates(text: str, action: str, order: str, total: str, products: list[tuple[str, list[str]]] = (), detail: str = "") -> bool:
    """Whether the assistant's reply states everything that this write would do.

    products: each name with the names of its other variants, which would make a return an exchange. detail: the new variant or
    address. A cancellation is known by the order's total, which no other write restates.
    """
    if not holds(text, order):
        return False
    named = all(holds(text, name) or holds(text, " ".join(name.split()[:2])) for name, _ in products)
    match action:
        case "cancel_order":
            return holds(text, total)
        case "return_items":
            others = any(holds(text, variant) for _, variants in products for variant in variants)
            return named and not others and not re.search(r"\b(cancel|call off)", text.casefold())
        case "exchange_item":
            return named and holds(text, detail)
        case "change_address":
            return holds(text, detail)
    raise ValueError(f"{action} is not a write")
