"""Tokenize dialogues for midtrain: the tokens, what each of them is, and what it depends on.

What it depends on are places in the context: those that a token copies, and those that decide it.
"""

import re
from dataclasses import dataclass

from tiktoken import Encoding

from crawl2cart.lm.formats import harmony
from crawl2cart.lm.tokenizer import END_OF_TEXT
from crawl2cart.lm.training.attention_supervision import Places

ASSISTANT_TURN = re.compile(
    r"(?<=<\|start\|>assistant)(.*?(?:<\|call\|>|<\|end\|>|<\|return\|>))", re.DOTALL
)
ANY_MESSAGE = re.compile(r"<\|message\|>(.*?)<\|end\|>", re.DOTALL)
USER_MESSAGE = re.compile(r"<\|start\|>user<\|message\|>(.*?)<\|end\|>", re.DOTALL)
# Values in the arguments of a call that may be copied: strings without their quotes, and numbers.
VALUE = re.compile(r'(?<=")(?:[^"\\]|\\.)+(?="[,\]}])|(?<=:)-?\d+(?:\.\d+)?')

# What a token is: context that the assistant reads, or its own. Its own tokens belong to a reply,
# to the arguments of a call, or to the choice of a tool or the customer as the recipient.
CONTEXT, REPLY, ARGUMENTS, TOOL_CHOICE = range(4)
MIN_REPLY_RUN = 3  # equal tokens in a row that make a copy in a reply
MIN_VALUE_RUN = 2  # the same in a value of a call
OPENING = 12  # first tokens of a reply, which make it an answer, a question or a refusal
MAX_SOURCES = 3  # places that a copied token is traced to


@dataclass(frozen=True)
class Example:
    """One dialogue without the common prefix, ended by <|endoftext|>.

    parts: what each token is. places: what tokens depend on. dialogue: its id.
    """

    ids: list[int]
    parts: list[int]
    places: Places
    dialogue: str = ""

    def until_tool_choice(self) -> "Example":
        """Return the example up to its first choice of a tool or a reply."""
        end = self.parts.index(TOOL_CHOICE)
        while self.parts[end] == TOOL_CHOICE:
            end += 1
        return Example(self.ids[:end], self.parts[:end], self.places.until(end - 1), self.dialogue)


def encode(tokenizer: Encoding, family: list[int], text: str, dialogue: str = "") -> Example:
    """Tokenize a rendered dialogue without its prefix.

    family: the class of each token, as `token_classes` numbers them. dialogue: its id.

    A token of the assistant that repeats earlier tokens depends on these. Otherwise the choice of a
    tool depends on the customer's turn before it, and the first OPENING tokens of a reply on all
    messages since the assistant's last turn. The rest depends on nothing.
    """
    ids, parts, copied, decided = [], [], {}, {}
    occurrences: dict[int, list[int]] = {}  # of each token class
    from_user, from_anyone = [], []  # places of the messages since the assistant's last turn
    for number, turn in enumerate(ASSISTANT_TURN.split(text + END_OF_TEXT)):
        tokens = tokenizer.encode(turn, allowed_special="all")
        if number % 2:  # every second part is the assistant's
            is_call, start = turn.endswith("<|call|>"), content_start(tokenizer, tokens)
            recipient = turn.partition(harmony.CHANNEL)[0]
            choice = len(tokenizer.encode(recipient)) + 1  # with the channel
            own = ARGUMENTS if is_call else REPLY
            parts += [TOOL_CHOICE] * choice + [own] * (len(tokens) - choice)
            before = [family[token] for token in ids]
            for place, span, min_run in copyable_spans(tokenizer, tokens, start, is_call):
                classes = [family[token] for token in span]
                for offset, sources in find_copies(before, occurrences, classes, min_run).items():
                    copied[len(ids) + place + offset - 1] = sources
            end = start if is_call else min(start + OPENING, len(tokens))
            for places, sources in ((range(choice), from_user), (range(start, end), from_anyone)):
                if sources:
                    decided |= {len(ids) + place - 1: sources for place in places}
        else:
            parts += [CONTEXT] * len(tokens)
            from_user, from_anyone = (
                [len(ids) + place for place in message_spans(tokenizer, turn, pattern)]
                for pattern in (USER_MESSAGE, ANY_MESSAGE)
            )
        for place, token in enumerate(tokens, len(ids)):
            occurrences.setdefault(family[token], []).append(place)
        ids += tokens
    decided = {query: sources for query, sources in decided.items() if query not in copied}
    queries = [place - 1 for place, part in enumerate(parts) if part != CONTEXT]
    idle = [query for query in queries if query not in copied and query not in decided]
    return Example(ids, parts, Places(copied, decided, idle), dialogue)


def message_spans(tokenizer: Encoding, text: str, pattern: re.Pattern) -> list[int]:
    """Return the places, in tokens, of the contents of the messages that match the pattern."""
    spans = [
        [len(tokenizer.encode(text[:end], allowed_special="all")) for end in match.span(1)]
        for match in pattern.finditer(text)
    ]
    return [place for start, end in spans for place in range(start, end)]


def content_start(tokenizer: Encoding, turn: list[int]) -> int:
    """Return where in a turn of the assistant its content begins, behind <|message|>."""
    return turn.index(tokenizer.encode_single_token(harmony.MESSAGE)) + 1


def copyable_spans(
    tokenizer: Encoding, turn: list[int], start: int, is_call: bool
) -> list[tuple[int, list[int], int]]:
    """Return the spans of a turn that may be copies: the values of a call, a reply's whole text.

    For each its place in the turn, its tokens, and how many of them in a row make a copy.
    start: where the content begins.
    """
    if not is_call:
        return [(start, turn[start:-1], MIN_REPLY_RUN)]
    text, extents = "", []
    for token in turn[start:]:
        begin, text = len(text), text + tokenizer.decode([token])
        extents.append((begin, len(text)))
    spans = []
    for value in VALUE.finditer(text):
        places = [
            start + number
            for number, (begin, end) in enumerate(extents)
            if begin >= value.start() and end <= value.end()
        ]
        if places:
            tokens = turn[places[0] : places[-1] + 1]
            spans.append((places[0], tokens, min(MIN_VALUE_RUN, len(places))))
    return spans


def find_copies(
    before: list[int], occurrences: dict[int, list[int]], tokens: list[int], min_run: int
) -> dict[int, list[int]]:
    """Find the tokens that stand in `before` as well, in a run of at least `min_run`.

    Returns for each the last places where the longest such runs hold it. occurrences: where in
    `before` each token stands. Takes time in the number of pairs of equal tokens.
    """
    longest, sources = [0] * len(tokens), {}
    for number, token in enumerate(tokens):
        for first in occurrences.get(token, ()):
            if first and number and before[first - 1] == tokens[number - 1]:
                continue  # inside a run that was met already
            run = 1
            while (
                number + run < len(tokens)
                and first + run < len(before)
                and before[first + run] == tokens[number + run]
            ):
                run += 1
            for offset in range(number, number + run if run >= min_run else number):
                if run > longest[offset]:
                    longest[offset], sources[offset] = run, []
                if run == longest[offset]:
                    sources[offset].append(first + offset - number)
    return {number: places[-MAX_SOURCES:] for number, places in sources.items()}
