"""Write all results into one page that opens without a network, and a model card for each checkpoint.

in   the files under metrics/, the samples of the five models, data/transcripts; data/* for their hashes
out  metrics/report.html, metrics/cards/{pretrained,sft,dpo}.md

Figures are SVG inside the page (report/figures.py); the cards' text is in report/cards.py.
"""

import hashlib
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.files import atomic_directory, atomic_file, read_json, read_jsonl
from crawl2cart.core.stage import Stage, run
from crawl2cart.report import figures
from crawl2cart.report.cards import MEASURED, cards, origins, with_interval

MODELS = ("mlp", "rnn", "lstm", "gru", "gpt_oss")
DATA = (
    "data/web",
    "data/store",
    "data/queries",
    "data/tokens",
    "data/sft",
    "data/prefs",
    "data/transcripts",
)
SHOWN_TURNS, SHOWN_PLAYS, WORST = 6, 4, 20
TEST = "data/sft/test.jsonl"


def table(rows: list[dict]) -> Markup:
    return Markup(
        pd.DataFrame(rows).to_html(index=False, border=0, escape=True, na_rep="", justify="left")
    )


def data_hashes(stage: Stage) -> list[dict]:
    """Files, bytes and one sha256 of all files for each data set."""
    rows = []
    for folder in DATA:
        files = stage.inputs[folder]
        digest = hashlib.sha256(
            "".join(f"{name} {sha}\n" for name, (_, _, sha) in sorted(files.items())).encode()
        ).hexdigest()
        size = sum(size for size, _, _ in files.values())
        rows.append(
            {"data": folder, "files": len(files), "bytes": f"{size:,}", "sha256": digest[:16]}
        )
    return rows


def flat(value: object, key: str) -> list[dict]:
    """Parameters as rows of dotted key and value."""
    if isinstance(value, dict):
        return [row for name, inner in value.items() for row in flat(inner, f"{key}.{name}")]
    return [{"parameter": key, "value": str(value)}]


def stages_of(root: Path, profile: str) -> dict[str, dict]:
    """deps and outs of each stage of dvc.yaml; those of a matrix are one. (DVC does not let dvc.yaml be a dependency.)"""
    found: dict[str, dict] = {}
    for name, stage in definitions(root, profile).items():
        one = found.setdefault(name.partition("@")[0], {"deps": [], "outs": []})
        one["deps"] += stage.deps
        one["outs"] += stage.outs
    return found


def agents_of(evaluated: dict) -> list[str]:
    """Names of what was measured: base, SFT and DPO first. `released` is one of these again."""
    others = [
        name
        for name, values in evaluated.items()
        if "tool_accuracy" in values and name not in (*figures.AGENTS, "released")
    ]
    return [*figures.AGENTS, *others]


def agent_row(evaluated: dict, agents: list[str], name: str) -> dict:
    """One measure of all agents. n has a column where all agree on it, and stands in each cell where the share is of an agent's own
    calls or replies.
    """
    counts = {
        agent: evaluated[agent][f"{name}_n"] for agent in agents if f"{name}_n" in evaluated[agent]
    }
    differ = len(set(counts.values())) > 1
    cells = {
        agent: with_interval(evaluated[agent], name)
        + (f" of {counts[agent]}" if differ and agent in counts else "")
        for agent in agents
    }
    return {
        "": name.replace("_", " "),
        "n": "" if differ else next(iter(counts.values()), ""),
        **cells,
    }


def agent_table(evaluated: dict) -> Markup:
    """The agents side by side, those of evaluate.models too."""
    agents = agents_of(evaluated)
    names = [
        *MEASURED,
        *(
            name
            for name in ("call_or_reply_accuracy", "fact_recall", "mean_reply_words")
            if name in evaluated["sft"]
        ),
    ]
    return table([agent_row(evaluated, agents, name) for name in names])


def baseline_table(evaluated: dict) -> Markup:
    rows = {"dpo": evaluated["dpo"], "sft": evaluated["sft"], **evaluated["baselines"]}
    return table(
        [
            {
                "": name.replace("_", " "),
                "right tool": with_interval(values, "tool_accuracy"),
                "exact arguments": with_interval(values, "argument_exact_match"),
            }
            for name, values in rows.items()
        ]
    )


def last_user_message(turn: dict) -> str:
    """The customer's last words."""
    return next(text for role, text in reversed(turn["before"]) if role == "customer")


def disagreements(turns: list[dict]) -> list[dict]:
    """Turns in which SFT and DPO say different things, those first that one of them gets right."""
    differ = [
        turn for turn in turns if turn["answers"]["sft"]["text"] != turn["answers"]["dpo"]["text"]
    ]
    differ.sort(key=lambda turn: turn["answers"]["sft"]["right"] == turn["answers"]["dpo"]["right"])
    return differ[:SHOWN_TURNS]


def worst_turns(turns: list[dict], agent: str) -> list[dict]:
    """The turns in which the released agent came least near to the right one; one of each intent before a second of any."""
    wrong = sorted(
        (turn for turn in turns if not turn["answers"][agent]["right"]),
        key=lambda turn: turn["answers"][agent]["partial"],
    )
    seen: dict[str, int] = {}
    ranked = []
    for turn in wrong:
        seen[turn["intent"]] = seen.get(turn["intent"], 0) + 1
        ranked.append((seen[turn["intent"]], turn))
    return [turn for _, turn in sorted(ranked, key=lambda pair: pair[0])][:WORST]


def sample_episodes(plays: list[dict]) -> list[dict]:
    """Plans in whose end the models differ first."""
    return sorted(
        plays, key=lambda play: len({one["success"] for one in play["played"].values()}) == 1
    )[:SHOWN_PLAYS]


def main(stage: Stage) -> None:
    figures.style()
    dpo, prefs = read_json("metrics/dpo.json"), read_json("metrics/prefs.json")
    pretrained, sft, evaluated = (
        read_json("metrics/pretrain.json"),
        read_json("metrics/sft.json"),
        read_json("metrics/evaluate.json"),
    )
    router = read_json("metrics/router.json")
    turns, plays = (
        read_jsonl("data/transcripts/turns.jsonl"),
        read_jsonl("data/transcripts/plays.jsonl"),
    )
    curves = {model: pd.read_csv(f"metrics/pretrain/{model}.tsv", sep="\t") for model in MODELS}
    tuned = [
        pd.read_csv(path, sep="\t")
        for path in ("metrics/midtrain.tsv", "metrics/sft.tsv", "metrics/dpo.tsv")
    ]
    by_intent = pd.read_csv("metrics/evaluate.tsv", sep="\t")
    released = "dpo" if dpo["dpo"]["released_is_dpo"] else "sft"
    values = stage.param_values()
    profile = values["profile"]
    environment = Environment(loader=FileSystemLoader("stages"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        profile=profile,
        seed=values["seed"],
        released=released,
        test=TEST,
        parameters=table([row for key, value in values.items() for row in flat(value, key)]),
        hashes=table(data_hashes(stage)),
        graph=figures.graph(stages_of(stage.root, profile)),
        filter=read_json("metrics/filter.json"),
        waterfall=figures.waterfall(pd.read_csv("metrics/filter.tsv", sep="\t")),
        losses=figures.losses(curves),
        pretrained=pretrained,
        pretrain_table=table(
            [
                {"model": model}
                | {
                    name.replace("_", " "): value if isinstance(value, float) else f"{value:,}"
                    for name, value in pretrained[model].items()
                }
                for model in MODELS
            ]
        ),
        samples={
            model: [
                (row["prompt"], row["text"])
                for row in read_json(f"models/pretrain/{model}/samples.json")
            ]
            for model in MODELS
        },
        tuning=figures.tuning(*tuned),
        sft=sft["sft"],
        prefs=prefs,
        origins=origins(prefs["pairs"]),
        dpo=dpo,
        evaluated=evaluated,
        names=agents_of(evaluated),
        best=evaluated[released],
        agent_table=agent_table(evaluated),
        baseline_table=baseline_table(evaluated),
        interval=with_interval,
        intents=figures.intents(by_intent),
        confusion=figures.confusion(
            [(turn["gold_tool"], turn["answers"][released]["tool"]) for turn in turns],
            f"tools that {released} called",
        ),
        plays=sample_episodes(plays),
        turns=disagreements(turns),
        worst_turns=worst_turns(turns, released),
        last_user_message=last_user_message,
        router=router,
        router_table=table(
            [
                {"queries": name.replace("_", " ")}
                | {key.replace("_", " "): value for key, value in router[name].items()}
                for name in ("local", "wordings_validation", "wordings_test")
            ]
        ),
    )
    with atomic_file("metrics/report.html") as temporary:
        temporary.write_text(page)
    with atomic_directory("metrics/cards") as folder:
        for name, text in cards(
            profile, values["seed"], pretrained, sft, dpo, prefs, evaluated
        ).items():
            (folder / f"{name}.md").write_text(text)


if __name__ == "__main__":
    run(main)
