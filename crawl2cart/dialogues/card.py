"""Describe data/sft: counts and lengths of its dialogues as JSON, and as a page with examples."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from crawl2cart.dialogues.generator import DialogueGenerator, characters
from crawl2cart.dialogues.sft_examples import calls_of, texts_of
from crawl2cart.shop.tool_schemas import WRITES, compact

HEAD = """# Shopping dialogues

Written by the stage `build_sft`; the next run overwrites this page. A scripted customer talks \
with an assistant that knows what is wanted
and acts by rule. Its calls were executed on a copy of the shop of the dialogue's own, its replies \
are put together from the shop's
hand-written fragments and say what the tools returned. `train` shares no product that a dialogue \
is about, wording, plan, order number or
e-mail with `validation` and `test`; `safety` has the words and products of `test`, and nothing \
may change in it.
Each line of a split is one dialogue, as `crawl2cart/dialogues/sft_examples.py` describes it.
"""


def card(splits: dict[str, list[dict]], generator: DialogueGenerator, teacher: dict | None) -> dict:
    """Count what the data set holds. teacher: the summary of Teacher, if there was one."""
    described = {
        "splits": {name: summary(dialogues) for name, dialogues in splits.items()},
        "unused": sorted(generator.unused),
    }
    return described | ({"teacher": teacher} if teacher else {})


def summary(dialogues: Sequence[dict]) -> dict:
    """Count the dialogues of a split by kind, and describe their lengths."""
    conversations = [dialogue["messages"] for dialogue in dialogues]
    calls = [call for messages in conversations for call in calls_of(messages)]
    replies = [text for messages in conversations for text in texts_of(messages, "assistant")]
    questions = [text for messages in conversations for text in texts_of(messages, "user")]
    arguments = [f"{call['name']}.{name}" for call in calls for name in call["arguments"]]
    notes = [note for dialogue in dialogues for note in dialogue["notes"]]
    return {
        "dialogues": len(dialogues),
        "with_plan": sum(dialogue["plan"] is not None for dialogue in dialogues),
        "messages": spread(map(len, conversations)),
        "characters": spread(map(characters, conversations)),
        "reply_characters": spread(map(len, replies)),
        "customer_characters": spread(map(len, questions)),
        "by_intent": dict(Counter(dialogue["intent"] for dialogue in dialogues)),
        "by_case": dict(Counter(dialogue["case"] for dialogue in dialogues if dialogue["case"])),
        "by_tool": dict(Counter(call["name"] for call in calls)),
        "by_argument": dict(Counter(arguments)),
        "by_act": dict(Counter(act for note in notes for act in note["acts"])),
    }


def spread(lengths: Iterable[int]) -> dict[str, float]:
    """Return the sum, mean, median, 95th percentile and maximum of lengths; 0 if there are none."""
    ordered = sorted(lengths)
    if not ordered:
        return {"sum": 0, "mean": 0, "median": 0, "p95": 0, "max": 0}
    return {
        "sum": sum(ordered),
        "mean": round(statistics.mean(ordered), 1),
        "median": statistics.median_low(ordered),
        "p95": ordered[(len(ordered) * 95 - 1) // 100],
        "max": ordered[-1],
    }


# The page

LENGTHS = {
    "messages": "messages",
    "characters": "characters",
    "reply_characters": "characters of a reply",
    "customer_characters": "characters of a customer's turn",
}
COUNTS = {
    "by_intent": "What the first turn wants",
    "by_tool": "Calls",
    "by_argument": "Arguments of calls",
    "by_act": "What replies do",
    "by_case": "Safety cases",
}
# Title, split, and which dialogue of it is shown: the first that fits.
EXAMPLES: tuple[tuple[str, str, Callable[[dict], bool]], ...] = (
    ("A search", "train", lambda dialogue: dialogue["intent"] == "search" and not dialogue["plan"]),
    (
        "A change that is restated, confirmed and made",
        "train",
        lambda dialogue: any(call["name"] in WRITES for call in calls_of(dialogue["messages"])),
    ),
    (
        "A review that gives orders to whoever reads it",
        "safety",
        lambda dialogue: dialogue["case"] == "injection",
    ),
)


def page(described: dict, splits: dict[str, list[dict]]) -> str:
    """Return the card in Markdown. described: what `card` returned."""
    parts = [HEAD, *length_tables(described["splits"]), *count_tables(described["splits"])]
    if "teacher" in described:
        parts += teacher_table(described["teacher"])
    parts.append("## Three of them\n")
    for title, split, fits in EXAMPLES:
        dialogue = next(filter(fits, splits[split]), None)
        if dialogue:
            transcript = format_transcript(dialogue)
            parts += [f"{title} (`{dialogue['id']}`):\n", f"~~~text\n{transcript}\n~~~\n"]
    return "\n".join(parts)


def length_tables(summaries: dict[str, dict]) -> list[str]:
    """Return a table of how many dialogues the splits have and how long they are."""
    form = "{median} / {p95} / {max}"
    rows = [
        ["dialogues", *(entry["dialogues"] for entry in summaries.values())],
        ["that follow a plan", *(entry["with_plan"] for entry in summaries.values())],
    ]
    for key, title in LENGTHS.items():
        rows.append([title, *(form.format(**entry[key]) for entry in summaries.values())])
    return [
        "## Dialogues and their lengths\n",
        table(["", *summaries], rows),
        "Lengths: median / 95 of 100 / longest.\n",
    ]


def count_tables(summaries: dict[str, dict]) -> list[str]:
    """Return a table for each kind of count, with a column for each split."""
    parts = []
    for key, title in COUNTS.items():
        names = sorted({name for entry in summaries.values() for name in entry[key]})
        rows = [
            [name, *(entry[key].get(name, 0) for entry in summaries.values())] for name in names
        ]
        parts += [f"## {title}\n", table(["", *summaries], rows)]
    return parts


def teacher_table(teacher: dict) -> list[str]:
    """Return a table of what was kept and rejected of the teacher's texts."""
    rows = [
        [f"{outcome}: {name}", count]
        for outcome in ("kept", "rejected")
        for name, count in sorted(teacher[outcome].items())
    ]
    return [f"## The teacher {teacher['model']}\n", table(["", "count"], rows)]


def table(head: list[str], rows: list[list]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def format_transcript(dialogue: dict) -> str:
    """Return a dialogue as plain text, a line for each message or call."""
    speakers = {"user": "customer", "tool": "   shows", "assistant": "   agent"}
    lines = []
    for message in dialogue["messages"]:
        if message.get("tool_calls"):
            for call in calls_of([message]):
                lines.append(f"     calls  {call['name']} {compact(call['arguments'])}")
        else:
            text = message["content"].replace("\n", "\n" + " " * 12)
            lines.append(f"{speakers[message['role']]:>10}  {text}")
    return "\n".join(lines)
