"""Dialogues as midtrain reads them: tokens, whose they are, and where the assistant should look for what it repeats and decides."""

import re
from dataclasses import dataclass

from tiktoken import Encoding

from stages.nn.guidance import Places
from stages.nn.tokenizer import END_OF_TEXT
from stages.shop import harmony

ASSISTANT_TURN = re.compile(r"(?<=<\|start\|>assistant)(.*?(?:<\|call\|>|<\|end\|>|<\|return\|>))", re.DOTALL)
CUSTOMER_TURN = re.compile(r"(?<=<\|start\|>user<\|message\|>).*?(?=<\|end\|>)", re.DOTALL)
# What may have been said before, in the arguments of a call: strings without their quotes, and numbers.
VALUE = re.compile(r'(?<=")(?:[^"\\]|\\.)+(?="[,\]}])|(?<=:)-?\d+(?:\.\d+)?')

# What a token is: read by the assistant, or written by it, in a reply, in a call, or to decide whom it speaks to: the customer or a tool.
READ, REPLY, CALL, DECISION = range(4)
REPLY_RUN = 3    # tokens in a row that make a copy of what a reply says as others did before


@dataclass(frozen=True)
class Row:
    """One dialogue behind the common prefix, ended by <|endoftext|>. parts: what each token is. places: see `copies` and
    `question`."""

    ids: list[int]
    parts: list[int]
    places: Places

    def decision(self) -> "Row":
        """The row up to its first decision."""
        first = self.parts.index(DECISION)
        end = first + next(number for number, part in enumerate(self.parts[first:]) if part != DECISION)
        return Row(self.ids[:end], self.parts[:end], self.places.until(end - 1))


def encode(tokenizer: Encoding, family: list[int], text: str) -> Row:
    """text: a rendered dialogue without its prefix. family: of each token, as spelling.families numbers them."""
    ids, parts, copied, decided = [], [], {}, {}
    said: dict[int, list[int]] = {}     # family -> where it stands
    asked: list[int] = []               # where the customer's words stand that the next turn answers
    for number, part in enumerate(ASSISTANT_TURN.split(text + END_OF_TEXT)):   # every second part is the assistant's
        tokens = tokenizer.encode(part, allowed_special="all")
        if number % 2:
            decision = 1 + len(tokenizer.encode(part.partition(harmony.CHANNEL)[0]))   # a tool or none, and the channel
            is_call = part.endswith("<|call|>")
            parts += [DECISION] * decision + [CALL if is_call else REPLY] * (len(tokens) - decision)
            if asked:
                decided |= dict.fromkeys(range(len(ids) - 1, len(ids) + decision - 1), asked)
            for place, words, least in repeatable(tokenizer, tokens, is_call):
                found = copies([family[token] for token in ids], said, [family[token] for token in words], least)
                copied |= {len(ids) + place + offset - 1: where for offset, where in found.items()}
        else:
            parts += [READ] * len(tokens)
            asked = [len(ids) + place for place in question(tokenizer, part)]
        for place, token in enumerate(tokens, len(ids)):
            said.setdefault(family[token], []).append(place)
        ids += tokens
    seen = copied | decided
    idle = [place - 1 for place, part in enumerate(parts) if part != READ and place - 1 not in seen]
    return Row(ids, parts, Places(copied, decided, idle))


def question(tokenizer: Encoding, part: str) -> range:
    """Where, in tokens, the customer's words stand in what was said between two turns of the assistant; nowhere if a tool spoke."""
    found = CUSTOMER_TURN.search(part)
    if not found:
        return range(0)
    start, end = (len(tokenizer.encode(part[:place], allowed_special="all")) for place in found.span())
    return range(start, end)


def repeatable(tokenizer: Encoding, turn: list[int], is_call: bool) -> list[tuple[int, list[int], int]]:
    """What a turn may repeat: the values of a call, a reply's whole text. Of each where it begins in the turn, its tokens, and how many
    in a row must have been said."""
    start = next(number for number, token in enumerate(turn) if tokenizer.decode([token]) == harmony.MESSAGE) + 1
    if not is_call:
        return [(start, turn[start:-1], REPLY_RUN)]
    text, spans = "", []
    for token in turn[start:]:
        begin, text = len(text), text + tokenizer.decode([token])
        spans.append((begin, len(text)))
    values = [[start + number for number, (begin, end) in enumerate(spans) if begin >= value.start() and end <= value.end()]
              for value in VALUE.finditer(text)]
    return [(places[0], turn[places[0]:places[-1] + 1], min(2, len(places))) for places in values if places]


def copies(before: list[int], said: dict[int, list[int]], words: list[int], least: int) -> dict[int, list[int]]:
    """Which of `words` were said before, `least` of them in a row or more, and where, in the longest such runs, the last three.

    said: where in `before` each word stands.
    """
    longest, found = [0] * len(words), {}
    for number, word in enumerate(words):
        for first in said.get(word, ()):
            if first and number and before[first - 1] == words[number - 1]:
                continue    # inside a run that was met already
            run = 1
            while number + run < len(words) and first + run < len(before) and before[first + run] == words[number + run]:
                run += 1
            for offset in range(number, number + run if run >= least else number):
                if run > longest[offset]:
                    longest[offset], found[offset] = run, []
                if run == longest[offset]:
                    found[offset].append(first + offset - number)
    return {number: where[-3:] for number, where in found.items()}
