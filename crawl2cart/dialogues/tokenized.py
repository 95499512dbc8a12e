"""Dialogues as midtrain reads them: tokens, whose they are, and where the assistant should look for what it repeats and decides."""

import re
from dataclasses import dataclass

from tiktoken import Encoding

from crawl2cart.lm.formats import harmony
from crawl2cart.lm.tokenizer import END_OF_TEXT
from crawl2cart.lm.training.attention_supervision import Places

ASSISTANT_TURN = re.compile(
    r"(?<=<\|start\|>assistant)(.*?(?:<\|call\|>|<\|end\|>|<\|return\|>))", re.DOTALL
)
ANYONE = re.compile(
    r"<\|message\|>(.*?)<\|end\|>", re.DOTALL
)  # messages between two turns, with their content
CUSTOMER = re.compile(r"<\|start\|>user<\|message\|>(.*?)<\|end\|>", re.DOTALL)
# What may have been said before, in the arguments of a call: strings without their quotes, and numbers.
VALUE = re.compile(r'(?<=")(?:[^"\\]|\\.)+(?="[,\]}])|(?<=:)-?\d+(?:\.\d+)?')

# What a token is: read by the assistant, or written by it, in a reply, in a call, or to decide whom it speaks to: the customer or a tool.
READ, REPLY, CALL, DECISION = range(4)
REPLY_RUN = 3  # tokens in a row that make a copy of what a reply says as others did before
OPENING = 12  # tokens of a reply that say what kind it is: an answer, a question, a refusal


@dataclass(frozen=True)
class Example:
    """One dialogue behind the common prefix, ended by <|endoftext|>. parts: what each token is. places: see `encode`. dialogue: its id."""

    ids: list[int]
    parts: list[int]
    places: Places
    dialogue: str = ""

    def decision(self) -> "Example":
        """The row up to its first decision."""
        first = self.parts.index(DECISION)
        end = first + next(
            number for number, part in enumerate(self.parts[first:]) if part != DECISION
        )
        return Example(self.ids[:end], self.parts[:end], self.places.until(end - 1), self.dialogue)


def encode(tokenizer: Encoding, family: list[int], text: str, dialogue: str = "") -> Example:
    """text: a rendered dialogue without its prefix. family: of each token, as spelling.families numbers them. dialogue: its id.

    What a turn repeats looks where it was said. Of the rest, a decision looks at the customer's words that it answers, the first OPENING
    tokens of a reply look at all that was said since the turn before, and what is left looks nowhere.
    """
    ids, parts, copied, decided = [], [], {}, {}
    said: dict[int, list[int]] = {}  # family -> where it stands
    asked, heard = (
        [],
        [],
    )  # where stands what was said since the turn before: by the customer, by a tool as well
    for number, part in enumerate(
        ASSISTANT_TURN.split(text + END_OF_TEXT)
    ):  # every second part is the assistant's
        tokens = tokenizer.encode(part, allowed_special="all")
        if number % 2:
            decision = 1 + len(
                tokenizer.encode(part.partition(harmony.CHANNEL)[0])
            )  # a tool or none, and the channel
            is_call, start = part.endswith("<|call|>"), content(tokenizer, tokens)
            parts += [DECISION] * decision + [CALL if is_call else REPLY] * (len(tokens) - decision)
            for place, words, least in repeatable(tokenizer, tokens, start, is_call):
                found = copies(
                    [family[token] for token in ids],
                    said,
                    [family[token] for token in words],
                    least,
                )
                copied |= {len(ids) + place + offset - 1: where for offset, where in found.items()}
            opening = () if is_call else range(start, min(start + OPENING, len(tokens)))
            decided |= {
                len(ids) + place - 1: where
                for places, where in ((range(decision), asked), (opening, heard))
                for place in places
                if where
            }
        else:
            parts += [READ] * len(tokens)
            asked, heard = (
                [len(ids) + place for place in message_spans(tokenizer, part, who)]
                for who in (CUSTOMER, ANYONE)
            )
        for place, token in enumerate(tokens, len(ids)):
            said.setdefault(family[token], []).append(place)
        ids += tokens
    decided = {query: where for query, where in decided.items() if query not in copied}
    seen = copied | decided
    idle = [place - 1 for place, part in enumerate(parts) if part != READ and place - 1 not in seen]
    return Example(ids, parts, Places(copied, decided, idle), dialogue)


def message_spans(tokenizer: Encoding, part: str, who: re.Pattern) -> list[int]:
    """Where, in tokens, the contents of the messages of `who` stand in what was said between two turns of the assistant."""
    ends = [
        [len(tokenizer.encode(part[:place], allowed_special="all")) for place in found.span(1)]
        for found in who.finditer(part)
    ]
    return [place for start, end in ends for place in range(start, end)]


def content(tokenizer: Encoding, turn: list[int]) -> int:
    """Where in a turn of the assistant begins what stands behind <|message|>."""
    return turn.index(tokenizer.encode_single_token(harmony.MESSAGE)) + 1


def repeatable(
    tokenizer: Encoding, turn: list[int], start: int, is_call: bool
) -> list[tuple[int, list[int], int]]:
    """What a turn, whose content starts at `start`, may repeat: the values of a call, a reply's whole text. Of each where it begins in the
    turn, its tokens, and how many in a row must have been said."""
    if not is_call:
        return [(start, turn[start:-1], REPLY_RUN)]
    text, spans = "", []
    for token in turn[start:]:
        begin, text = len(text), text + tokenizer.decode([token])
        spans.append((begin, len(text)))
    values = [
        [
            start + number
            for number, (begin, end) in enumerate(spans)
            if begin >= value.start() and end <= value.end()
        ]
        for value in VALUE.finditer(text)
    ]
    return [
        (places[0], turn[places[0] : places[-1] + 1], min(2, len(places)))
        for places in values
        if places
    ]


def copies(
    before: list[int], said: dict[int, list[int]], words: list[int], least: int
) -> dict[int, list[int]]:
    """Which of `words` were said before, `least` of them in a row or more, and where, in the longest such runs, the last three.

    said: where in `before` each word stands.
    """
    longest, found = [0] * len(words), {}
    for number, word in enumerate(words):
        for first in said.get(word, ()):
            if first and number and before[first - 1] == words[number - 1]:
                continue  # inside a run that was met already
            run = 1
            while (
                number + run < len(words)
                and first + run < len(before)
                and before[first + run] == words[number + run]
            ):
                run += 1
            for offset in range(number, number + run if run >= least else number):
                if run > longest[offset]:
                    longest[offset], found[offset] = run, []
                if run == longest[offset]:
                    found[offset].append(first + offset - number)
    return {number: where[-3:] for number, where in found.items()}
