"""Write the data card of the preference pairs, data/prefs/README.md."""

from collections import Counter

from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.pairs import message_text
from crawl2cart.preferences.reward import RIGHT

ORIGINS = {
    "sampled": "both turns are the SFT model's own",
    "gold": "all samples were wrong, so the recorded turn is chosen",
    "written": (
        "good and faulty replies to one situation of data/store/tone.jsonl that needs no tool"
    ),
    "feedback": "replies that customers gave a thumb",
}
# Why words alone tell the sides apart, by origin.
LEAK_CAUSES = {
    "gold": "recorded turns are better English than samples that are all wrong",
    "written": "the manner of a reply is in its words, which is what these pairs teach",
    "sampled": (
        "wrong samples have words that right ones do not: a call's wrong argument names, "
        "broken words"
    ),
}
LEAK = 0.60  # an area under the ROC curve that the card has to explain
MIN_PAIRS = 10  # of an origin, before its area says anything
EXCERPT = 300  # characters


def card(
    pairs: dict[str, list[dict]],
    summary: dict,
    prompts: Counter,
    telling: dict[str, list[str]],
    params,
) -> str:
    """Return the card as Markdown.

    pairs: by split. summary: the values of metrics/prefs.json. prompts: training prompts by
    freshness (see prompts.py). telling: by side the words that weigh most (see artifact_auc).
    params: the section build_prefs of params.yaml.
    """
    all_pairs = [pair for split in pairs.values() for pair in split]
    paragraphs = [
        "# Preference pairs for a shopping agent",
        *_introduction(all_pairs, params),
        "## Counts",
        *_counts(pairs, prompts),
        "## How a turn is scored",
        *_scoring(summary),
        "## Leaks",
        *_leaks(summary, telling, len(all_pairs)),
        "## Examples",
        *map(_example, _choose_examples(all_pairs)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _introduction(all_pairs: list[dict], params) -> list[str]:
    calls = sum(bool(pair["chosen"][0].get("tool_calls")) for pair in all_pairs)
    return [
        f"{len(all_pairs)} pairs of a better and a worse turn of the assistant after the same "
        f"prompt; {calls} of the better turns are calls. Made by the stage `build_prefs` from "
        f"{params.samples} samples a prompt at temperature {params.temperature}, top-p "
        f"{params.top_p}.",
        "One JSON object a line: `prompt`, `chosen`, `rejected` (messages of the OpenAI API), "
        "`tools`, `scores` (chosen, rejected), `reasons` (what the rejected one lacks), `origin`, "
        "`kind`, `intent`, `id`.",
    ]


def _counts(pairs: dict[str, list[dict]], prompts: Counter) -> list[str]:
    origins, intents = (
        [Counter(pair[key] for pair in pairs[split]) for split in pairs]
        for key in ("origin", "intent")
    )
    unseen = ", ".join(
        f"the {name} of {count}" if name != "nothing" else f"{count} are its own"
        for name, count in prompts.items()
        if count
    )
    return [
        _table(
            ("origin", *pairs, "what it is"),
            [(name, *(count[name] for count in origins), text) for name, text in ORIGINS.items()],
        ),
        _table(
            ("intent", *pairs),
            [(name, *(count[name] for count in intents)) for name in sorted(set().union(*intents))],
        ),
        f"Of the prompts for training, SFT's rows had not shown: {unseen}.",
    ]


def _scoring(summary: dict) -> list[str]:
    samples, scorer = summary["samples"], summary["tone_scorer"]
    paragraphs = [
        "Checks that run decide what is right: the turn can be read, calls the right tool with the "
        "right arguments, states only what tools returned or the customer said, claims no change "
        "that was not made, asks consent to exactly the change, names the policy's section. Among "
        f"right turns helpfulness counts, then tone. Of {samples['n']} samples "
        f"{samples['right']:.0%} were right and {samples['unreadable']:.0%} could not be read.",
        "The tone scorer puts the good reply above a faulty one in "
        f"{scorer['accuracy']:.1%} of the pairs, in situations that it had not seen.",
    ]
    if judge := summary.get("judge"):
        paragraphs.append(
            f"Between right replies {judge['asked']} times a GPT-4 judge decided, asked in both "
            f"orders: in {judge['inconsistent']:.0%} it contradicted itself, in "
            f"{judge['ties']:.0%} it saw a tie, in {judge['disagrees']:.0%} it preferred the other "
            "reply."
        )
    return paragraphs


def _leaks(summary: dict, telling: dict[str, list[str]], total: int) -> list[str]:
    areas = {"all": summary["artifact_auc"], **summary["artifact_auc_by_origin"]}
    rows = [
        (
            f"{name} ({summary['pairs'].get(name, total)})",
            f"{auc['length']:.2f}",
            f"{auc['bag_of_words']:.2f}",
        )
        for name, auc in areas.items()
    ]
    longer = summary["chosen_longer_rate"]["share"]
    return [
        f"The chosen turn is the longer one in {longer:.0%} of the pairs.",
        _table(("pairs", "length alone, AUC", "words alone, AUC"), rows),
        _leak_note(summary, telling),
    ]


def _leak_note(summary: dict, telling: dict[str, list[str]]) -> str:
    """Explain why the sides can be told apart without the prompt, where they can."""
    if max(summary["artifact_auc"].values()) <= LEAK:
        return f"Neither tells the sides apart above {LEAK:.2f}."
    causes = [
        f"{origin}: {LEAK_CAUSES[origin]}"
        for origin, auc in summary["artifact_auc_by_origin"].items()
        if max(auc.values()) > LEAK
        and summary["pairs"][origin] >= MIN_PAIRS
        and origin in LEAK_CAUSES
    ]
    return (
        f"Above {LEAK:.2f}, because {'; '.join(causes) or 'the origins differ from each other'}. "
        f"Words that weigh most: for chosen {', '.join(telling['chosen'])}; for rejected "
        f"{', '.join(telling['rejected'])}. A model can lower its loss by such words alone, which "
        "is why `dpo` judges the answers themselves and not the loss."
    )


def _choose_examples(pairs: list[dict]) -> list[dict]:
    """Return the first pair of each origin, and the first of two right replies."""
    first = {pair["origin"]: pair for pair in reversed(pairs)}
    right = [pair for pair in pairs if pair["origin"] == "sampled" and pair["scores"][1] >= RIGHT]
    return [first[name] for name in ORIGINS if name in first] + right[:1]


def _example(pair: dict) -> str:
    """Return a pair as text: long parts cut, markers of the chat format broken."""
    query = next(
        message["content"] for message in reversed(pair["prompt"]) if message["role"] == "user"
    )
    parts = {
        "customer": query,
        "chosen": message_text(pair["chosen"]),
        "rejected": message_text(pair["rejected"]),
        "why": "; ".join(pair["reasons"]) or "lower score",
    }
    lines = [
        f"{name}: {' '.join(harmony.escape_markers(text).split())[:EXCERPT]}"
        for name, text in parts.items()
    ]
    scores = " and ".join(f"{value:.2f}" for value in pair["scores"])
    head = f"{pair['origin']}, {pair['intent']}, scores {scores}"
    return "\n".join([head, "```", *lines, "```"])
