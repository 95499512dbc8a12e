"""Build the report's tables as HTML, with every text escaped."""

import hashlib
from collections.abc import Iterable

import pandas as pd
from markupsafe import Markup

from crawl2cart.report.cards import MEASURED, with_interval
from crawl2cart.report.figures import AGENTS

OTHER_METRICS = ("call_or_reply_accuracy", "fact_recall", "mean_reply_words")  # not on the cards


def label(name: str) -> str:
    """Return the name of a metric as text: `tool accuracy`."""
    return name.replace("_", " ")


def table(rows: list[dict]) -> Markup:
    """Return rows as an HTML table; the keys of the first are the header."""
    frame = pd.DataFrame(rows)
    return Markup(frame.to_html(index=False, border=0, escape=True, na_rep="", justify="left"))


def data_table(inputs: dict[str, dict[str, tuple[int, int, str]]], names: Iterable[str]) -> Markup:
    """List files, bytes and one sha256 of each data set. inputs: as in `Stage.inputs`."""
    rows = []
    for name in names:
        files = sorted(inputs[name].items())
        lines = "".join(f"{file} {sha256}\n" for file, (_, _, sha256) in files)
        size = sum(file_size for _, (file_size, _, _) in files)
        digest = hashlib.sha256(lines.encode()).hexdigest()
        rows.append(
            {"data": name, "files": len(files), "bytes": f"{size:,}", "sha256": digest[:16]}
        )
    return table(rows)


def parameter_table(values: dict[str, object]) -> Markup:
    """List parameters by their dotted keys."""
    return table([row for key, value in values.items() for row in parameter_rows(key, value)])


def parameter_rows(key: str, value: object) -> list[dict]:
    """Return one row for each parameter at or below a dotted key."""
    if isinstance(value, dict):
        return [row for name in value for row in parameter_rows(f"{key}.{name}", value[name])]
    return [{"parameter": key, "value": str(value)}]


def pretrain_table(pretrained: dict, models: Iterable[str]) -> Markup:
    """List the metrics of the five models; counts have thousands separators."""
    rows = []
    for model in models:
        values = pretrained[model].items()
        cells = {label(k): v if isinstance(v, float) else f"{v:,}" for k, v in values}
        rows.append({"model": model} | cells)
    return table(rows)


def agents_of(evaluated: dict) -> list[str]:
    """Return the agents in metrics/evaluate.json: base, SFT and DPO, then `evaluate.models`.

    `released` is left out, because it repeats one of them.
    """
    others = [
        name
        for name, values in evaluated.items()
        if "tool_accuracy" in values and name not in (*AGENTS, "released")
    ]
    return [*AGENTS, *others]


def agent_row(evaluated: dict, agents: list[str], metric: str) -> dict:
    """Return one metric of all agents.

    n has its own column if it is the same for all agents. It stands in each cell if not, as where
    a rate is per call or reply of the agent itself.
    """
    n = f"{metric}_n"
    counts = {agent: evaluated[agent][n] for agent in agents if n in evaluated[agent]}
    differ = len(set(counts.values())) > 1
    cells = {}
    for agent in agents:
        cells[agent] = with_interval(evaluated[agent], metric)
        if differ and agent in counts:
            cells[agent] += f" of {counts[agent]}"
    return {"": label(metric), "n": "" if differ else next(iter(counts.values()), ""), **cells}


def agent_table(evaluated: dict) -> Markup:
    """Show all agents side by side, a metric in each row."""
    metrics = [*MEASURED, *(name for name in OTHER_METRICS if name in evaluated["sft"])]
    agents = agents_of(evaluated)
    return table([agent_row(evaluated, agents, metric) for metric in metrics])


def baseline_table(evaluated: dict) -> Markup:
    """Show DPO and SFT beside the baselines that need no language model."""
    rows = {"dpo": evaluated["dpo"], "sft": evaluated["sft"], **evaluated["baselines"]}
    metrics = ("tool_accuracy", "argument_exact_match")
    return table(
        [
            {"": label(name)} | {label(metric): with_interval(values, metric) for metric in metrics}
            for name, values in rows.items()
        ]
    )


def router_table(router: dict) -> Markup:
    """Show the local classifier on the test queries and on the shop's wordings."""
    columns = {
        "test queries": router["local"],
        "validation wordings": router["wordings_validation"],
        "test wordings": router["wordings_test"],
    }
    rows = []
    for metric in router["local"]:
        values = {name: column[metric] for name, column in columns.items()}
        cells = {k: f"{v:.3f}" if isinstance(v, float) else f"{v:,}" for k, v in values.items()}
        rows.append({"": label(metric)} | cells)
    return table(rows)
