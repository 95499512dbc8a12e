"""Draw the report's figures as SVG elements with matplotlib.

They are readable on white and on near-black. Equal numbers give equal bytes.
"""

import io
import re
from collections.abc import Sequence

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
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
NO_CALL = ("reply", "malformed")  # what a turn may be instead of a tool call


def style() -> None:
    """Set matplotlib's defaults for every figure of the report."""
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
    """Return the figure as an SVG element, with the title for screen readers."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None}
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    text = buffer.getvalue()
    # Ids are unique within a figure; the prefix makes them unique on the page.
    prefix = re.sub(r"\W+", "-", title)
    element = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text[text.index("<svg") :])
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))


def waterfall(steps: pd.DataFrame) -> Markup:
    """Draw how many pages each filter rule removed. steps: rule, pages (left), removed."""
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
    """Draw training loss and validation bits per byte of the five models.

    curves: by model, with step, loss, val_bits_per_byte (missing at most steps).
    """
    figure, (training, validation) = plt.subplots(1, 2, figsize=(9, 3.4))
    for model, curve in curves.items():
        line = {"color": COLOURS[model], "label": model, "linewidth": 1.3}
        training.plot(curve["step"], curve["loss"], **line)
        evals = curve.dropna(subset=["val_bits_per_byte"])
        validation.plot(evals["step"], evals["val_bits_per_byte"], **line)
    training.set(xlabel="step", ylabel="training loss, nats per token")
    validation.set(xlabel="step", ylabel="held-out pages, bits per byte")
    training.legend()
    figure.tight_layout()
    return svg(figure, "loss of the five models")


def tuning(midtrain: pd.DataFrame, sft: pd.DataFrame, dpo: pd.DataFrame) -> Markup:
    """Draw the curves of midtraining, SFT and DPO. Columns that a curve lacks are left out."""
    log_probabilities = {"chosen_log_probability": "dpo", "rejected_log_probability": "sft"}
    panels = (
        (midtrain, {"loss": "gpt_oss"}, "midtraining: loss"),
        (sft, {"loss": "gpt_oss", "eval_call_loss": "sft"}, "SFT: loss, and on held-out calls"),
        (dpo, {"loss": "dpo"}, "DPO: loss on held-out pairs"),
        (dpo, {"kl": "dpo"}, "DPO: KL divergence from SFT, nats per token"),
        (dpo, {"margin": "dpo", "accuracy": "lstm"}, "DPO: reward margin and accuracy"),
        (dpo, log_probabilities, "DPO: log-probability of chosen and rejected turns"),
    )
    figure, axes = plt.subplots(3, 2, figsize=(9, 8.1))
    for panel, (curve, columns, title) in zip(axes.flat, panels, strict=True):
        for column, colour in columns.items():
            if column in curve:
                line = {"color": COLOURS[colour], "label": column.replace("_", " ")}
                panel.plot(curve["step"], curve[column], linewidth=1.3, **line)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        if len(columns) > 1:
            panel.legend()
    figure.tight_layout()
    return svg(figure, "curves of midtraining, SFT and DPO")


def intents(table: pd.DataFrame) -> Markup:
    """Draw tool accuracy and the share of right turns by intent, with 95 % intervals.

    table: model, intent, metric, value, low, high, n. An intent that never calls for a tool has no
    point in the left panel.
    """
    names = sorted(table["intent"].unique())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 0.5 * len(names) + 1))
    panels = ((left, "tool_accuracy", "tool accuracy"), (right, "right", "share of right turns"))
    for axes, metric, label in panels:
        rows = table[(table["metric"] == metric) & (table["n"] > 0)]
        for i, model in enumerate(AGENTS):
            of_model = rows[rows["model"] == model].set_index("intent").reindex(names)
            below = (of_model["value"] - of_model["low"]).clip(0)
            above = (of_model["high"] - of_model["value"]).clip(0)
            axes.errorbar(
                of_model["value"],
                [y + (i - 1) * 0.24 for y in range(len(names))],
                xerr=[below, above],
                fmt="o",
                color=COLOURS[model],
                markersize=4,
                linewidth=1.2,
                label=model,
            )
        first_agent = rows[rows["model"] == AGENTS[0]].set_index("intent")
        counts = first_agent["n"].reindex(names, fill_value=0)
        ticks = [f"({counts[name]})" for name in names]
        if axes is left:
            named = zip(names, ticks, strict=True)
            ticks = [f"{name.replace('_', ' ')} {tick}" for name, tick in named]
        axes.set_yticks(range(len(names)), ticks)
        axes.set(
            xlim=(-0.03, 1.03),
            ylim=(len(names) - 0.5, -0.5),
            xlabel=f"{label}, with 95 % interval",
        )
        axes.grid(axis="y", color=PALE)
    figure.tight_layout()
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(AGENTS))
    return svg(figure, "tool accuracy and right turns by intent")


def confusion(pairs: Sequence[tuple[str, str]], title: str) -> Markup:
    """Draw which tool was called (column) for each right tool (row). pairs: right, called."""
    right_tools, called_tools = zip(*pairs, strict=True)
    counts = pd.crosstab(pd.Series(right_tools), pd.Series(called_tools))
    names = [*sorted((set(counts.index) | set(counts.columns)) - set(NO_CALL)), *NO_CALL]
    row_names = [name for name in names if name in counts.index]
    counts = counts.reindex(index=row_names, columns=names, fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0)
    figure, axes = plt.subplots(figsize=(0.62 * len(names) + 2.4, 0.42 * len(counts) + 1.8))
    for y, right_tool in enumerate(row_names):
        for x, called_tool in enumerate(names):
            share = shares.loc[right_tool, called_tool]
            if share == 0:
                continue
            colour = COLOURS["dpo" if right_tool == called_tool else "sft"]
            cell = plt.Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, linewidth=0)
            cell.set_alpha(0.15 + 0.6 * share)
            axes.add_patch(cell)
            axes.text(
                x,
                y,
                counts.loc[right_tool, called_tool],
                ha="center",
                va="center",
                weight="bold",
                color="white" if share > 0.4 else GREY,
            )
    axes.set_xticks(range(len(names)), [n.replace("_", " ") for n in names], rotation=40, ha="left")
    axes.set_yticks(range(len(counts)), [name.replace("_", " ") for name in row_names])
    axes.xaxis.tick_top()
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(counts) - 0.5, -0.5))
    return svg(figure, title)
