"""The card of data/sft: how many dialogues of what kind, how long they are, and three to read. As JSON, and as a page of Markdown."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from crawl2cart.dialogues.generator import DialogueGenerator, characters
from crawl2cart.shop.tool_schemas import WRITES, compact

HEAD = """# Shopping dialogues

Written by the stage `build_sft`; the next run overwrites this page. A scripted customer talks with an assistant that knows what is wanted
and acts by rule. Its calls were executed on a copy of the shop of the dialogue's own, its replies are put together from the shop's
hand-written fragments and say what the tools returned. `train` shares no product that a dialogue is about, wording, plan, order number or
e-mail with `validation` and `test`; `safety` has the words and products of `test`, and nothing may change in it.
Each line of a split is one dialogue, as `crawl2cart/dialogues/sft_examples.py` describes it.
"""


def card(splits: dict[str, list[dict]], maker: DialogueGenerator, teacher: dict | None) -> dict:
    """Counts and lengths of what the data set holds. teacher: what it kept and rejected, if one was asked."""
    described = {name: summary(dialogues) for name, dialogues in splits.items()}
    return {"splits": described, "unused": sorted(maker.unused)} | (
        {"teacher": teacher} if teacher else {}
    )


def summary(dialogues: Sequence[dict]) -> dict:
    calls = [called for dialogue in dialogues for called in calls_of(dialogue)]
    return {
        "dialogues": len(dialogues),
        "with_plan": sum(dialogue["plan"] is not None for dialogue in dialogues),
        "messages": spread(len(dialogue["messages"]) for dialogue in dialogues),
        "characters": spread(characters(dialogue["messages"]) for dialogue in dialogues),
        "reply_characters": spread(
            len(reply) for dialogue in dialogues for reply in replies_of(dialogue)
        ),
        "customer_characters": spread(
            len(message["content"])
            for dialogue in dialogues
            for message in dialogue["messages"]
            if message["role"] == "user"
        ),
        "by_intent": dict(Counter(dialogue["intent"] for dialogue in dialogues)),
        "by_case": dict(Counter(dialogue["case"] for dialogue in dialogues if dialogue["case"])),
        "by_tool": dict(Counter(call["name"] for call in calls)),
        "by_argument": dict(
            Counter(f"{call['name']}.{name}" for call in calls for name in call["arguments"])
        ),
        "by_act": dict(
            Counter(
                act for dialogue in dialogues for note in dialogue["notes"] for act in note["acts"]
            )
        ),
    }


def spread(lengths: Sequence[int]) -> dict[str, float]:
    """Sum, mean, median, the 95th of a hundred, and the largest."""
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


def calls_of(dialogue: dict) -> list[dict]:
    return [
        call["function"]
        for message in dialogue["messages"]
        for call in message.get("tool_calls", [])
    ]


def replies_of(dialogue: dict) -> list[str]:
    return [
        message["content"]
        for message in dialogue["messages"]
        if message["role"] == "assistant" and not message.get("tool_calls")
    ]


# The page


def page(described: dict, splits: dict[str, list[dict]]) -> str:
    """The card in Markdown."""
    names = list(splits)
    parts = [
        HEAD,
        "## Dialogues and their lengths\n",
        table(
            ["", *names],
            [
                ["dialogues", *(described["splits"][name]["dialogues"] for name in names)],
                ["that follow a plan", *(described["splits"][name]["with_plan"] for name in names)],
                *(
                    [
                        title,
                        *(
                            "{median} / {p95} / {max}".format(**described["splits"][name][key])
                            for name in names
                        ),
                    ]
                    for title, key in (
                        ("messages", "messages"),
                        ("characters", "characters"),
                        ("characters of a reply", "reply_characters"),
                        ("characters of a customer's turn", "customer_characters"),
                    )
                ),
            ],
        ),
        "Lengths: median / 95 of 100 / longest.\n",
    ]
    for title, key in (
        ("What the first turn wants", "by_intent"),
        ("Calls", "by_tool"),
        ("Arguments of calls", "by_argument"),
        ("What replies do", "by_act"),
        ("Safety cases", "by_case"),
    ):
        counts = {name: described["splits"][name][key] for name in names}
        rows = sorted({row for split in counts.values() for row in split})
        parts += [
            f"## {title}\n",
            table(
                ["", *names], [[row, *(counts[name].get(row, 0) for name in names)] for row in rows]
            ),
        ]
    if "teacher" in described:
        teacher = described["teacher"]
        parts += [
            f"## The teacher {teacher['model']}\n",
            table(
                ["", "count"],
                [
                    *([f"kept: {what}", count] for what, count in sorted(teacher["kept"].items())),
                    *(
                        [f"rejected: {reason}", count]
                        for reason, count in sorted(teacher["rejected"].items())
                    ),
                ],
            ),
        ]
    parts.append("## Three of them\n")
    for title, split, wanted in EXAMPLES:
        found = next((dialogue for dialogue in splits[split] if wanted(dialogue)), None)
        parts += (
            [f"{title} (`{found['id']}`):\n", f"~~~text\n{script(found)}\n~~~\n"] if found else []
        )
    return "\n".join(parts)


EXAMPLES: tuple[tuple[str, str, Callable[[dict], bool]], ...] = (
    ("A search", "train", lambda dialogue: dialogue["intent"] == "search" and not dialogue["plan"]),
    (
        "A change that is restated, confirmed and made",
        "train",
        lambda dialogue: any(c["name"] in WRITES for c in calls_of(dialogue)),
    ),
    (
        "A review that gives orders to whoever reads it",
        "safety",
        lambda dialogue: dialogue["case"] == "injection",
    ),
)


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def script(dialogue: dict) -> str:
    """A dialogue as one reads it."""
    lines = []
    for message in dialogue["messages"]:
        if message.get("tool_calls"):
            lines += [
                f"     calls  {call['function']['name']} {compact(call['function']['arguments'])}"
                for call in message["tool_calls"]
            ]
        else:
            who = {"user": "customer", "tool": "   shows", "assistant": "   agent"}[message["role"]]
            lines.append(f"{who:>10}  " + message["content"].replace("\n", "\n" + " " * 12))
    return "\n".join(lines)
