"""The data card of the preference pairs: what is in them, where it comes from, what to be careful of, and examples to read."""

from collections import Counter

from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.pairs import plain
from crawl2cart.preferences.reward import RIGHT

ORIGINS = {
    "sampled": "both turns are the SFT model's own",
    "gold": "all samples were wrong, so the recorded turn is chosen",
    "written": "good and faulty replies to one situation of data/store/tone.jsonl that needs no tool",
    "feedback": "replies that customers gave a thumb",
}
LEAK = 0.60
LEAST_PAIRS = 10  # of an origin, before its area says anything
SHOWN_LETTERS = 300


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |" for row in (head, ("---",) * len(head), *rows)
    )


def card(
    pairs: dict[str, list[dict]],
    summary: dict,
    prompts: Counter,
    telling: dict[str, list[str]],
    params,
) -> str:
    """pairs by split, metrics/prefs.json's values, prompts by what SFT has not seen of them, and the words that tell the sides apart."""
    made = [pair for rows in pairs.values() for pair in rows]
    counts = lambda key: [Counter(pair[key] for pair in pairs[split]) for split in pairs]  # noqa: E731
    origins, intents = counts("origin"), counts("intent")
    calls = sum(bool(pair["chosen"][0].get("tool_calls")) for pair in made)
    samples, scorer = summary["samples"], summary["tone_scorer"]
    return (
        "\n\n".join(
            [
                "# Preference pairs for a shopping agent",
                f"{len(made)} pairs of a better and a worse turn of the assistant after the same prompt; {calls} of the better turns are calls. "
                f"Made by the stage `build_prefs` from {params.samples} samples a prompt at temperature {params.temperature}, top-p "
                f"{params.top_p}.",
                "One JSON object a line: `prompt`, `chosen`, `rejected` (messages of the OpenAI API), `tools`, `scores` (chosen, rejected), "
                "`reasons` (what the rejected one lacks), `origin`, `kind`, `intent`, `id`.",
                "## Counts",
                table(
                    ("origin", *pairs, "what it is"),
                    [
                        (name, *(count[name] for count in origins), text)
                        for name, text in ORIGINS.items()
                    ],
                ),
                table(
                    ("intent", *pairs),
                    [
                        (name, *(count[name] for count in intents))
                        for name in sorted(set().union(*intents))
                    ],
                ),
                "Of the prompts for training, SFT's rows had not shown: "
                f"{', '.join(f'the {name} of {n}' if name != 'nothing' else f'{n} are its own' for name, n in prompts.items() if n)}.",
                "## How a turn is scored",
                "Checks that run decide what is right: the turn can be read, calls the right tool with the right arguments, states only what "
                "tools returned or the customer said, claims no change that was not made, asks consent to exactly the change, names the policy's "
                "section. Among right turns helpfulness counts, then tone. "
                f"Of {samples['n']} samples {samples['right']:.0%} were right and {samples['unreadable']:.0%} could not be read.",
                f"The tone scorer puts the good reply above a faulty one in {scorer['accuracy']:.1%} of the pairs, in situations that it had not "
                "seen.",
                *judged(summary),
                "## Leaks",
                f"The chosen turn is the longer one in {summary['chosen_longer_rate']['share']:.0%} of the pairs.",
                table(
                    ("pairs", "length alone, AUC", "words alone, AUC"),
                    [
                        (
                            f"{name} ({summary['pairs'].get(name, len(made))})",
                            *(f"{values[key]:.2f}" for key in ("length", "bag_of_words")),
                        )
                        for name, values in (
                            ("all", summary["artifact_auc"]),
                            *summary["artifact_auc_by_origin"].items(),
                        )
                    ],
                ),
                leak_note(summary, telling),
                "## Examples",
                *(example(pair) for pair in examples(made)),
            ]
        )
        + "\n"
    )


def judged(summary: dict) -> list[str]:
    """What the GPT-4 judge decided, if there was one."""
    if "judge" not in summary:
        return []
    judge = summary["judge"]
    return [
        f"Between right replies {judge['asked']} times a GPT-4 judge decided, asked in both orders: in {judge['inconsistent']:.0%} it "
        f"contradicted itself, in {judge['ties']:.0%} it saw a tie, in {judge['disagrees']:.0%} it preferred the other reply."
    ]


def leak_note(summary: dict, telling: dict[str, list[str]]) -> str:
    """Why the sides can be told apart without reading the prompt, where they can."""
    if max(summary["artifact_auc"].values()) <= LEAK:
        return f"Neither tells the sides apart above {LEAK:.2f}."
    reasons = {
        "gold": "recorded turns are better English than samples that are all wrong",
        "written": "the manner of a reply is in its words, which is what these pairs teach",
        "sampled": "wrong samples have words that right ones do not: a call's wrong argument names, broken words",
    }
    above = [
        origin
        for origin, values in summary["artifact_auc_by_origin"].items()
        if max(values.values()) > LEAK and summary["pairs"][origin] >= LEAST_PAIRS
    ]
    why = (
        "; ".join(f"{origin}: {reasons[origin]}" for origin in above if origin in reasons)
        or "the origins differ from each other"
    )
    return (
        f"Above {LEAK:.2f}, because {why}. Words that weigh most: for chosen {', '.join(telling['chosen'])}; for rejected "
        f"{', '.join(telling['rejected'])}. A model can lower its loss by such words alone, which is why `dpo` judges the answers "
        "themselves and not the loss."
    )


def examples(pairs: list[dict]) -> list[dict]:
    """The first pair of each origin, and the first of two right replies."""
    first = {pair["origin"]: pair for pair in reversed(pairs)}
    right = [pair for pair in pairs if pair["origin"] == "sampled" and pair["scores"][1] >= RIGHT]
    return [first[name] for name in ORIGINS if name in first] + right[:1]


def example(pair: dict) -> str:
    """A pair as text, long parts cut, markers of the chat format parted."""
    asked = next(
        message["content"] for message in reversed(pair["prompt"]) if message["role"] == "user"
    )
    lines = [
        ("customer", asked),
        ("chosen", plain(pair["chosen"])),
        ("rejected", plain(pair["rejected"])),
        ("why", "; ".join(pair["reasons"]) or "lower score"),
    ]
    shown = [
        f"{name}: {' '.join(harmony.escape_markers(text).split())[:SHOWN_LETTERS]}" for name, text in lines
    ]
    scores = " and ".join(f"{value:.2f}" for value in pair["scores"])
    return "\n".join([f"{pair['origin']}, {pair['intent']}, scores {scores}", "```", *shown, "```"])
