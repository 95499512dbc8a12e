"""Dialogues as midtrain reads them: tokens, which of them the assistant wrote, and where what its calls copy was said before."""

import re
from dataclasses import dataclass

from tiktoken import Encoding

from stages.nn.guidance import Places
from stages.nn.tokenizer import END_OF_TEXT
from stages.shop import harmony

ASSISTANT_TURN = re.compile(r"(?<=<\|start\|>assistant)(.*?(?:<\|call\|>|<\|end\|>|<\|return\|>))", re.DOTALL)
# What may have been said before, in the arguments of a call: strings without their quotes, and numbers.
VALUE = re.compile(r'(?<=")(?:[^"\\]|\\.)+(?="[,\]}])|(?<=:)-?\d+(?:\.\d+)?')


@dataclass(frozen=True)
class Row:
    """One dialogue behind the common prefix, ended by <|endoftext|>. written: which tokens are the assistant's. places: see `copies`."""

    ids: list[int]
    written: list[bool]
    places: Places


def encode(tokenizer: Encoding, family: list[int], text: str) -> Row:
    """text: a rendered dialogue without its prefix. family: of each token, as spelling.families numbers them."""
    ids, written, copied = [], [], {}
    for number, part in enumerate(ASSISTANT_TURN.split(text + END_OF_TEXT)):   # every second part is the assistant's
        tokens = tokenizer.encode(part, allowed_special="all")
        if number % 2 and part.endswith("<|call|>"):
            copied |= copies(tokenizer, family, ids, tokens)
        ids += tokens
        written += [bool(number % 2)] * len(tokens)
    idle = [place - 1 for place, own in enumerate(written) if own and place - 1 not in copied]
    return Row(ids, written, Places(copied, idle))


def copies(tokenizer: Encoding, family: list[int], before: list[int], call: list[int]) -> dict[int, list[int]]:
    """For each place before a token of a call's arguments that was said before: where, in the longest runs of the same words."""
    start = next(number for number, token in enumerate(call) if tokenizer.decode([token]) == harmony.MESSAGE) + 1
    text, spans = "", []
    for token in call[start:]:
        begin, text = len(text), text + tokenizer.decode([token])
        spans.append((begin, len(text)))
    said = [family[token] for token in before]
    found: dict[int, list[int]] = {}
    for value in VALUE.finditer(text):
        places = [start + number for number, (begin, end) in enumerate(spans) if begin >= value.start() and end <= value.end()]
        words = [family[call[place]] for place in places]
        longest, seen = [0] * len(words), [[] for _ in words]
        for first in range(len(said)):
            for number in range(len(words)):
                if said[first] != words[number] or first and number and said[first - 1] == words[number - 1]:
                    continue    # no match, or inside one that was met already
                run = 1
                while number + run < len(words) and first + run < len(said) and said[first + run] == words[number + run]:
                    run += 1
                for offset in range(run):
                    if run > longest[number + offset]:
                        longest[number + offset], seen[number + offset] = run, []
                    if run == longest[number + offset]:
                        seen[number + offset].append(first + offset)
        for place, run, where in zip(places, longest, seen, strict=True):
            if where and run >= min(2, len(words)):
                found[len(before) + place - 1] = where[-3:]
    return found
