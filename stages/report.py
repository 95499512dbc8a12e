"""Write all results into one page that opens without a network, and a card for each checkpoint.

in   the files below metrics/, samples of the five models, data/transcripts; data/* to hash it
out  metrics/report.html, metrics/cards/{pretrained,sft,dpo}.md

The page is crawl2cart/report/report.html.j2. Its figures are SVG elements inside the page.
"""

from importlib.resources import files

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from crawl2cart.core.files import atomic_directory, atomic_file, read_json, read_jsonl
from crawl2cart.core.stage import Stage, run
from crawl2cart.report import cards, examples, figures, tables
from crawl2cart.report.stage_graph import draw_graph, stage_graph

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
TEST = "data/sft/test.jsonl"


def read_curve(path: str) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t")


def page_values(stage: Stage, metrics: dict) -> dict:
    """Return everything that the page's template needs. metrics: the content of each JSON file."""
    params = stage.param_values()
    pretrained, evaluated, prefs = metrics["pretrain"], metrics["evaluate"], metrics["prefs"]
    released = "dpo" if metrics["dpo"]["dpo"]["released_is_dpo"] else "sft"
    turns = read_jsonl("data/transcripts/turns.jsonl")
    episodes = read_jsonl("data/transcripts/plays.jsonl")
    curves = {model: read_curve(f"metrics/pretrain/{model}.tsv") for model in MODELS}
    tuning_curves = (
        read_curve("metrics/midtrain.tsv"),
        read_curve("metrics/sft.tsv"),
        read_curve("metrics/dpo.tsv"),
    )
    tool_pairs = [(turn["gold_tool"], turn["answers"][released]["tool"]) for turn in turns]
    samples = {model: read_json(f"models/pretrain/{model}/samples.json") for model in MODELS}
    return {
        "profile": params["profile"],
        "seed": params["seed"],
        "parameters": tables.parameter_table(params),
        "hashes": tables.data_table(stage.inputs, DATA),
        "graph": draw_graph(stage_graph(stage.root, params["profile"])),
        "filter": metrics["filter"],
        "waterfall": figures.waterfall(read_curve("metrics/filter.tsv")),
        "pretrained": pretrained,
        "pretrain_table": tables.pretrain_table(pretrained, MODELS),
        "losses": figures.losses(curves),
        "samples": samples,
        "tuning": figures.tuning(*tuning_curves),
        "sft": metrics["sft"]["sft"],
        "prefs": prefs,
        "origins": cards.origins(prefs["pairs"]),
        "dpo": metrics["dpo"],
        "evaluated": evaluated,
        "released": released,
        "best": evaluated[released],
        "agents": tables.agents_of(evaluated),
        "agent_table": tables.agent_table(evaluated),
        "baseline_table": tables.baseline_table(evaluated),
        "intents": figures.intents(read_curve("metrics/evaluate.tsv")),
        "confusion": figures.confusion(tool_pairs, f"tools that {released} called"),
        "test_file": TEST,
        "episodes": examples.sample_episodes(episodes),
        "turns": examples.disagreements(turns),
        "worst": examples.worst_turns(turns, released),
        "router": metrics["router"],
        "router_table": tables.router_table(metrics["router"]),
        "last_user_message": examples.last_user_message,
        "with_interval": cards.with_interval,
    }


def main(stage: Stage) -> None:
    figures.style()
    metrics = {
        "filter": read_json("metrics/filter.json"),
        "pretrain": read_json("metrics/pretrain.json"),
        "sft": read_json("metrics/sft.json"),
        "prefs": read_json("metrics/prefs.json"),
        "dpo": read_json("metrics/dpo.json"),
        "router": read_json("metrics/router.json"),
        "evaluate": read_json("metrics/evaluate.json"),
    }
    templates = FileSystemLoader(str(files("crawl2cart.report")))
    template = Environment(loader=templates, autoescape=True).get_template("report.html.j2")
    values = page_values(stage, metrics)
    with atomic_file("metrics/report.html") as temporary:
        temporary.write_text(template.render(values))
    with atomic_directory("metrics/cards") as folder:
        for name, text in cards.cards(values["profile"], values["seed"], metrics).items():
            (folder / f"{name}.md").write_text(text)


if __name__ == "__main__":
    run(main)
