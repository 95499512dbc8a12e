"""Write all results into one page that opens without a network.

in   the files under metrics/, the samples of the five models, data/transcripts/turns.jsonl
out  metrics/report.html

Figures are SVG inside the page, drawn with matplotlib; colours suit light and dark.
"""

import io
import re

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from stages.common.files import atomic_file, read_json, read_jsonl
from stages.common.stage import Stage, run

MODELS = ("mlp", "rnn", "lstm", "gru", "gpt_oss")
AGENTS = ("base", "sft", "dpo")
COLOURS = {"mlp": "#c2571a", "rnn": "#8a6d00", "lstm": "#2d8a4e", "gru": "#7a55c7", "gpt_oss": "#1886a8",
           "base": "#8a8f94", "sft": "#c2571a", "dpo": "#1886a8"}
GREY = "#7d868c"  # readable on white and on near-black
SHOWN_TURNS = 12


def style() -> None:
    plt.rcParams.update({
        "svg.hashsalt": "crawl2cart", "svg.fonttype": "path", "figure.facecolor": "none", "axes.facecolor": "none",
        "axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "text.color": GREY,
        "axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "legend.frameon": False})


def svg(figure: plt.Figure, title: str) -> Markup:
    """The figure as an SVG element with a text for screen readers; equal figures give equal bytes."""
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    element = text.getvalue()[text.getvalue().index("<svg"):]
    return Markup(re.sub("<svg", f'<svg role="img" aria-label="{title}"', element, count=1))


def waterfall() -> Markup:
    """How many pages each rule took: the rules for one page by size, then those across pages."""
    steps = pd.read_csv("metrics/filter.tsv", sep="\t")
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(steps) + 1.2))
    axes.barh("crawled", steps["pages"].iloc[0], color=GREY)
    for step in steps.iloc[1:].itertuples():
        axes.barh(step.rule.replace("_", " "), step.removed, left=step.pages, color=COLOURS["mlp"])
        axes.text(step.pages, step.rule.replace("_", " "), f"{step.removed} ", ha="right", va="center")
    axes.barh("kept", steps["pages"].iloc[-1], color=COLOURS["gpt_oss"])
    axes.invert_yaxis()
    axes.set_xlabel("pages")
    return svg(figure, "pages removed by each rule")


def losses() -> Markup:
    figure, (training, validation) = plt.subplots(1, 2, figsize=(9, 3.4))
    for model in MODELS:
        curve = pd.read_csv(f"metrics/pretrain/{model}.tsv", sep="\t")
        training.plot(curve["step"], curve["loss"], color=COLOURS[model], label=model, linewidth=1.3)
        looks = curve.dropna(subset=["val_bits_per_byte"])
        validation.plot(looks["step"], looks["val_bits_per_byte"], color=COLOURS[model], label=model, linewidth=1.3)
    training.set(xlabel="step", ylabel="training loss, nats per token")
    validation.set(xlabel="step", ylabel="held-out pages, bits per byte")
    training.legend()
    figure.tight_layout()
    return svg(figure, "loss of the five models")


def tuning() -> Markup:
    figure, panes = plt.subplots(1, 3, figsize=(10, 3))
    for pane, name, column, title in zip(panes, ("midtrain", "sft", "dpo"), ("loss", "loss", "margin"),
                                         ("practice: loss", "SFT: loss", "DPO: reward margin"), strict=True):
        curve = pd.read_csv(f"metrics/{name}.tsv", sep="\t")
        pane.plot(curve["step"], curve[column], color=COLOURS["gpt_oss"], linewidth=1.3)
        pane.set(xlabel="step", title=title)
    figure.tight_layout()
    return svg(figure, "curves of practice, SFT and DPO")


def intents(turns: list[dict]) -> Markup:
    """Share of turns answered rightly by intent."""
    rows = pd.DataFrame([{"intent": turn["intent"], "model": model, "right": answer["right"]}
                         for turn in turns for model, answer in turn["answers"].items()])
    shares = rows.groupby(["intent", "model"])["right"].mean().unstack().reindex(columns=list(AGENTS))
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(shares) + 1))
    height = 0.26
    for i, model in enumerate(AGENTS):
        axes.barh([y + (i - 1) * height for y in range(len(shares))], shares[model], height, color=COLOURS[model],
                  label=model)
    axes.set_yticks(range(len(shares)), [intent.replace("_", " ") for intent in shares.index])
    axes.set(xlim=(0, 1), xlabel="share of turns answered rightly")
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return svg(figure, "right answers by intent")


def table(rows: list[dict]) -> Markup:
    return Markup(pd.DataFrame(rows).to_html(index=False, border=0, escape=True, na_rep="", justify="left"))


def share(values: dict, name: str) -> str:
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    return f"{values[name]:.3f}" + (f" ({low:.2f} to {high:.2f})" if low is not None else "")


def agent_table(evaluated: dict) -> Markup:
    names = [name for name in evaluated["sft"] if not name.endswith(("_low", "_high"))]
    return table([{"": name.replace("_", " ")} | {model: share(evaluated[model], name) if isinstance(
        evaluated[model][name], float) else evaluated[model][name] for model in AGENTS} for name in names])


def shown(turns: list[dict]) -> list[dict]:
    """Turns worth reading: first those where SFT and DPO differ, then those that fail, as the template wants them."""
    differ = [turn for turn in turns if turn["answers"]["sft"]["text"] != turn["answers"]["dpo"]["text"]]
    wrong = [turn for turn in turns if not turn["answers"]["sft"]["right"] and turn not in differ]
    chosen = differ[:SHOWN_TURNS // 2] + wrong[:SHOWN_TURNS // 2]
    return [turn | {"said": next(text for role, text in reversed(turn["before"]) if role == "user")} for turn in chosen]


def main(stage: Stage) -> None:
    style()
    filtered, dpo = read_json("metrics/filter.json"), read_json("metrics/dpo.json")
    pretrained, evaluated = read_json("metrics/pretrain.json"), read_json("metrics/evaluate.json")
    turns = read_jsonl("data/transcripts/turns.jsonl")
    samples = {model: [(row["prompt"], row["text"]) for row in read_json(f"models/pretrain/{model}/samples.json")]
               for model in MODELS}
    environment = Environment(loader=FileSystemLoader("stages"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        filter=filtered, dpo=dpo, samples=samples, waterfall=waterfall(), losses=losses(), tuning=tuning(),
        pretrain_table=table([{"model": model} | pretrained[model] for model in MODELS]),
        guard_table=table([{"guard": name.replace("_", " "), "passed": passed}
                           for name, passed in dpo["guards"].items()]),
        agent_table=agent_table(evaluated), intents=intents(turns), turns=shown(turns),
        router_table=table([read_json("metrics/router.json")["local"]]))
    with atomic_file("metrics/report.html") as temporary:
        temporary.write_text(page)


if __name__ == "__main__":
    run(main)
