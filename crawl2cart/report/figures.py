"""The report's figures: SVG elements drawn with matplotlib, readable on white and on near-black. Equal numbers give equal bytes."""

import io
import re
from collections.abc import Sequence

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import networkx
import pandas as pd
from markupsafe import Markup, escape

COLOURS = {
    "mlp": "#c2571a",
    "rnn": "#9a7a00",
    "lstm": "#2d8a4e",
    "gru": "#8b66d9",
    "gpt_oss": "#1886a8",
    "base": "#8a8f94",
    "sft": "#c2571a",
    "dpo": "#1886a8",
}
GREY, PALE = "#7d868c", "#7d868c33"
AGENTS = ("base", "sft", "dpo")


def style() -> None:
    plt.rcParams.update(
        {
            "svg.hashsalt": "crawl2cart",
            "svg.fonttype": "path",
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "axes.edgecolor": GREY,
            "axes.labelcolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "text.color": GREY,
            "axes.titlecolor": GREY,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "legend.frameon": False,
        }
    )


def svg(figure: plt.Figure, title: str) -> Markup:
    """The figure as an SVG element with a text for screen readers."""
    text = io.StringIO()
    figure.savefig(
        text, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}
    )
    plt.close(figure)
    # Ids of one figure are unique in it; on the page they must be so too.
    name = re.sub(r"\W+", "-", title)
    element = re.sub(
        r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text.getvalue()[text.getvalue().index("<svg") :]
    )
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))


def graph(stages: dict[str, dict]) -> Markup:
    """The graph of dvc.yaml: data on the left, each stage right of all that it reads. stages: name -> deps and outs."""
    makers = {out: name for name, stage in stages.items() for out in stage["outs"]}
    drawn = networkx.DiGraph()
    for name, stage in stages.items():
        drawn.add_node(name)
        for dep in stage["deps"]:
            before = next(
                (
                    maker
                    for out, maker in makers.items()
                    if f"{dep}/".startswith(f"{out}/") or out.startswith(f"{dep}/")
                ),
                None,
            )
            if before and before != name:
                drawn.add_edge(before, name)
            elif not before and dep.startswith("data/"):
                drawn.add_edge("/".join(dep.split("/")[:2]), name)
    reduced = networkx.transitive_reduction(drawn)  # its edges come in the order of a set
    drawn = networkx.DiGraph()
    drawn.add_nodes_from(stages)
    drawn.add_edges_from(sorted(reduced.edges))
    for data in [
        node for node in drawn if node not in stages
    ]:  # one of its own for each reader, beside it
        for reader in list(drawn.successors(data)):
            drawn.add_edge(f"{data} {reader}", reader)
        drawn.remove_node(data)
    # Each node just left of the first that reads it, so that few arrows are long.
    layers = [sorted(layer) for layer in networkx.topological_generations(drawn.reverse())][::-1]
    place: dict[str, tuple[float, float]] = {}
    for column, layer in reversed(list(enumerate(layers))):  # near the middle of what reads it
        middle = {
            node: sum(place[after][1] for after in drawn.successors(node))
            / max(1, drawn.out_degree(node))
            for node in layer
        }
        for row, node in enumerate(sorted(layer, key=lambda node: (middle[node], node))):
            place[node] = column, row - (len(layer) - 1) / 2
    figure, axes = plt.subplots(figsize=(11.5, 3))
    for begin, end in drawn.edges:
        (x, y), (u, v) = place[begin], place[end]
        begin_half, end_half = (0.04 * len(name.split()[0]) + 0.08 for name in (begin, end))
        axes.annotate(
            "",
            (u - end_half, v),
            (x + begin_half, y),
            arrowprops={
                "arrowstyle": "-|>",
                "color": GREY,
                "linewidth": 0.8,
                "connectionstyle": f"arc3,rad={0.0 if u - x < 1.5 else -0.2}",
            },
        )
    for node, (x, y) in place.items():
        made = node in stages
        axes.text(
            x,
            y,
            node.split()[0],
            ha="center",
            va="center",
            fontsize=9,
            color=COLOURS["gpt_oss"] if made else GREY,
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": PALE if made else "none",
                "edgecolor": GREY if made else "none",
            },
        )
    axes.set(
        xlim=(-0.5, len(layers) - 0.5), ylim=(max(map(len, layers)) / 2, -max(map(len, layers)) / 2)
    )
    axes.axis("off")
    return svg(figure, "the graph")


def waterfall(steps: pd.DataFrame) -> Markup:
    """How many pages each rule took: the rules for one page by size, then those across pages. steps: rule, pages (left), removed."""
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(steps) + 1.2))
    axes.barh("crawled", steps["pages"].iloc[0], color=GREY)
    for step in steps.iloc[1:].itertuples():
        name = step.rule.replace("_", " ")
        axes.barh(name, step.removed, left=step.pages, color=COLOURS["mlp"])
        axes.text(step.pages, name, f"{step.removed} ", ha="right", va="center")
    axes.barh("kept", steps["pages"].iloc[-1], color=COLOURS["gpt_oss"])
    axes.invert_yaxis()
    axes.set_xlabel("pages")
    return svg(figure, "pages removed by each rule")


def losses(curves: dict[str, pd.DataFrame]) -> Markup:
    """curves: model -> step, loss, val_bits_per_byte (not at every step)."""
    figure, (training, validation) = plt.subplots(1, 2, figsize=(9, 3.4))
    for model, curve in curves.items():
        training.plot(
            curve["step"], curve["loss"], color=COLOURS[model], label=model, linewidth=1.3
        )
        looks = curve.dropna(subset=["val_bits_per_byte"])
        validation.plot(
            looks["step"],
            looks["val_bits_per_byte"],
            color=COLOURS[model],
            label=model,
            linewidth=1.3,
        )
    training.set(xlabel="step", ylabel="training loss, nats per token")
    validation.set(xlabel="step", ylabel="held-out pages, bits per byte")
    training.legend()
    figure.tight_layout()
    return svg(figure, "loss of the five models")


def tuning(midtrain: pd.DataFrame, sft: pd.DataFrame, dpo: pd.DataFrame) -> Markup:
    """The curves of practice and SFT, and what DPO does to loss, KL, margin, accuracy and the log-probabilities of both answers."""
    figure, panes = plt.subplots(3, 2, figsize=(9, 8.1))
    panels = (
        (midtrain, {"loss": "gpt_oss"}, "practice: loss"),
        (
            sft,
            {"loss": "gpt_oss", "eval_call_loss": "sft"},
            "SFT: loss, and that of held-out calls",
        ),
        (dpo, {"loss": "dpo"}, "DPO: loss on held-out pairs"),
        (dpo, {"kl": "dpo"}, "DPO: KL divergence from SFT, nats per token"),
        (dpo, {"margin": "dpo", "accuracy": "lstm"}, "DPO: reward margin and accuracy"),
        (
            dpo,
            {"chosen_log_probability": "dpo", "rejected_log_probability": "sft"},
            "DPO: log-probability of an answer",
        ),
    )
    for pane, (curve, columns, title) in zip(panes.flat, panels, strict=True):
        for column, colour in columns.items():
            if column in curve:
                pane.plot(
                    curve["step"],
                    curve[column],
                    color=COLOURS[colour],
                    linewidth=1.3,
                    label=column.split("_")[0],
                )
        pane.set_title(title, fontsize=10)
        pane.set_xlabel("step")
        if len(columns) > 1:
            pane.legend()
    figure.tight_layout()
    return svg(figure, "curves of practice, SFT and DPO")


def intents(table: pd.DataFrame) -> Markup:
    """Shares of right tools, where one should be called, and of right turns, by intent with intervals.

    table: model, intent, metric, value, low, high, n. An intent that calls for no tool has no point in the first pane.
    """
    names = sorted(table["intent"].unique())
    figure, (calls, turns) = plt.subplots(1, 2, figsize=(9, 0.5 * len(names) + 1))
    for axes, metric, said in (
        (calls, "tool_accuracy", "right tools"),
        (turns, "right", "right turns"),
    ):
        here = table[(table["metric"] == metric) & (table["n"] > 0)]
        for i, model in enumerate(AGENTS):
            rows = here[here["model"] == model].set_index("intent").reindex(names)
            places = [y + (i - 1) * 0.24 for y in range(len(names))]
            axes.errorbar(
                rows["value"],
                places,
                xerr=[
                    (rows["value"] - rows["low"]).clip(0),
                    (rows["high"] - rows["value"]).clip(0),
                ],
                fmt="o",
                color=COLOURS[model],
                markersize=4,
                linewidth=1.2,
                label=model,
            )
        counts = (
            here[here["model"] == AGENTS[0]].set_index("intent")["n"].reindex(names, fill_value=0)
        )
        axes.set_yticks(
            range(len(names)),
            [
                f"{name.replace('_', ' ')} ({counts[name]})"
                if axes is calls
                else f"({counts[name]})"
                for name in names
            ],
        )
        axes.set(
            xlim=(-0.03, 1.03),
            ylim=(len(names) - 0.5, -0.5),
            xlabel=f"share of {said}, with 95 % interval",
        )
        axes.grid(axis="y", color=PALE)
    figure.tight_layout()
    calls.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(AGENTS))
    return svg(figure, "right tools and right turns by intent")


def confusion(pairs: Sequence[tuple[str, str]], title: str) -> Markup:
    """Which tool was called (column) where which was right (row). pairs: right tool, called tool."""
    counts = pd.crosstab(
        pd.Series([right for right, _ in pairs]), pd.Series([said for _, said in pairs])
    )
    names = [
        *sorted((set(counts.index) | set(counts.columns)) - {"reply", "malformed"}),
        "reply",
        "malformed",
    ]
    counts = counts.reindex(
        index=[name for name in names if name in counts.index], columns=names, fill_value=0
    )
    figure, axes = plt.subplots(figsize=(0.62 * len(names) + 2.4, 0.42 * len(counts) + 1.8))
    shares = counts.div(counts.sum(axis=1), axis=0)
    for (y, right), (x, said) in (
        (a, b) for a in enumerate(counts.index) for b in enumerate(names)
    ):
        if counts.loc[right, said]:
            colour = COLOURS["dpo" if right == said else "sft"]
            axes.add_patch(
                plt.Rectangle(
                    (x - 0.5, y - 0.5),
                    1,
                    1,
                    color=colour,
                    alpha=0.15 + 0.6 * shares.loc[right, said],
                    linewidth=0,
                )
            )
            axes.text(
                x,
                y,
                counts.loc[right, said],
                ha="center",
                va="center",
                weight="bold",
                color="white" if shares.loc[right, said] > 0.4 else GREY,
            )
    labels = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=40, ha="left")
    axes.set_yticks(range(len(counts)), [name.replace("_", " ") for name in counts.index])
    axes.xaxis.tick_top()
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(counts) - 0.5, -0.5))
    return svg(figure, title)
