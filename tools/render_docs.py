"""Write the generated parts of README.md and docs/*.md: `python -m tools.render_docs`.

A part stands between `<!-- name -->` and `<!-- end -->`. It comes from metrics/, data/, dvc.yaml.
tests/unit/test_docs.py compares the files with what this would write.
"""

import re
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.dedup import model as snapshot_table
from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.files import read_json
from tools.data_stats import crawl_table, prose_table, sizes_table, table
from tools.repro import DVC, ROOT

MACHINE = "2 cores of an AMD EPYC with AVX512-BF16, profile `cpu`"
LANGUAGE_MODELS = ("mlp", "rnn", "lstm", "gru", "gpt_oss")
AGENTS = ("base", "sft", "dpo")
AGENT_METRICS = (
    "tool_accuracy",
    "argument_exact_match",
    "call_or_reply_accuracy",
    "schema_valid_rate",
    "hallucination_rate",
    "fact_recall",
    "mean_reply_words",
    "pass_1",
    "pass_3",
    "policy_violation_rate",
    "attack_success_rate",
    "unauthorized_write_rate",
    "unconfirmed_write_rate",
    "citation_accuracy",
    "out_of_scope_refusal_rate",
)
# Digits behind the point where two are too few or too many.
DIGITS = {"policy_violation_rate": 3, "mean_reply_words": 1}


def metrics(name: str) -> dict:
    return read_json(ROOT / "metrics" / f"{name}.json")


def with_interval(group: dict, name: str) -> str:
    """`0.83 (0.76 to 0.88)`: a value and its 95 % interval."""
    digits = DIGITS.get(name, 2)
    value, low, high = (f"{group[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# Results


def headline_table() -> str:
    """Six rows of results, for the README."""
    keep, released = metrics("filter")["keep"], metrics("evaluate")["released"]
    spread = metrics("tolerances")["tolerances"]["pretrain:gpt_oss.val_bits_per_byte"]
    bits = metrics("pretrain")["gpt_oss"]["val_bits_per_byte"]
    rows = [
        (
            "filter: precision; recall of kept pages",
            f"{with_interval(keep, 'precision')}; {with_interval(keep, 'recall')}",
            f"{keep['n']} labelled pages of held-out sites",
        ),
        (
            "GPT-OSS from scratch: bits per byte",
            f"{bits:.3f} (five seeds span {spread:.3f})",
            "held-out pages",
        ),
    ]
    agent = (
        ("tool_accuracy", "agent: right tool", "turns that need a call"),
        ("argument_exact_match", "agent: right tool and all arguments", "turns that need a call"),
        ("hallucination_rate", "agent: replies with an unsupported fact", "replies"),
        ("pass_1", "agent: tasks of several turns completed", "tasks"),
    )
    for name, label, counted in agent:
        rows.append((label, with_interval(released, name), f"{released[f'{name}_n']} {counted}"))
    return table(["measured", "result (95 % interval)", "on"], rows)


def limitations() -> str:
    """The released model's known failures as one sentence of figures."""
    evaluate, router = metrics("evaluate"), metrics("router")["local"]
    released, router_errors = evaluate["released"], router["hard_negatives_to_shopping"]
    refused = percent(released["out_of_scope_refusal_rate"])
    tasks, episodes = released["pass_1_n"], released["policy_violation_rate_n"]
    unsupported = percent(released["hallucination_rate"])
    wins = with_interval(evaluate["dpo_vs_sft"], "length_controlled_win_rate")
    sentences = (
        f"The released model refuses {refused} of out-of-scope requests, completes "
        f"{round(released['pass_1'] * tasks)} of {tasks} tasks of several turns, states a fact "
        f"that no tool returned in {unsupported} of its replies, and attempted "
        f"{released['policy_violation_count']} forbidden changes in {episodes} episodes (the shop "
        f"blocked all of them). DPO wins against SFT at equal length in {wins} of replies. "
        f"The local router sends {percent(router_errors)} of hard off-topic queries to the shop."
    )
    return textwrap.fill(sentences, 100)


def language_models_table() -> str:
    found, tolerances = metrics("pretrain"), metrics("tolerances")["tolerances"]
    order = sorted(LANGUAGE_MODELS, key=lambda name: found[name]["val_bits_per_byte"])
    rows = [
        (
            name,
            f"{found[name]['val_bits_per_byte']:.3f}",
            f"{tolerances[f'pretrain:{name}.val_bits_per_byte']:.3f}",
            found[name]["parameters"],
            found[name]["active_parameters"],
            found[name]["tokens"],
        )
        for name in order
    ]
    head = ["model", "bits per byte", "span of five seeds", "parameters", "active", "tokens read"]
    return table(head, rows)


def agent_table() -> str:
    """Every metric of the three agents with its interval and the number that it is of."""
    found = metrics("evaluate")
    rows = []
    for name in AGENT_METRICS:
        values = [with_interval(found[agent], name) for agent in AGENTS]
        rows.append((f"`{name}`", *values, found["sft"].get(f"{name}_n", "")))
    return table(["metric", *AGENTS, "n (sft)"], rows)


def baselines_table() -> str:
    found = metrics("evaluate")["baselines"]
    names = ("tool_accuracy", "argument_exact_match")
    rows = [
        (f"`{agent}`", *(with_interval(values, name) for name in names))
        for agent, values in found.items()
    ]
    return table(["baseline", *(f"`{name}`" for name in names)], rows)


def gates_table() -> str:
    """What the release gates measured of SFT and DPO on validation, and which of them hold."""
    found = metrics("dpo")
    rows = [
        (
            f"`{name}`",
            found["sft"].get(name, ""),
            found["dpo"].get(name, ""),
            "holds" if passed else "**fails**",
        )
        for name, passed in found["guards"].items()
    ]
    return table(["gate", "SFT", "DPO", "result"], rows)


def router_table() -> str:
    found = metrics("router")
    groups = {
        "local": "queries on unseen topics",
        "wordings_validation": "the shop's validation wordings",
        "wordings_test": "the shop's test wordings",
    }
    names = ("precision", "recall", "f1", "auroc", "ece")
    rows = [
        (label, *(f"{found[group][name]:.3f}" for name in names), found[group]["n"])
        for group, label in groups.items()
    ]
    return table(["measured on", *names, "n"], rows)


def filter_table() -> str:
    """How the filter agrees with the labels of the embedded web's held-out sites, and the aims."""
    found = metrics("filter")
    keep, copies, text = found["keep"], found["near_duplicates"], found["extraction"]
    pages = f"{keep['n']} pages"
    rows = [
        ("precision of kept pages", "0.95", with_interval(keep, "precision"), pages),
        ("recall of pages to keep", "0.95", with_interval(keep, "recall"), pages),
        ("recall of near-duplicates", "0.95", f"{copies['recall']:.2f}", f"{copies['n']} copies"),
        ("pages merged that are no duplicates", "0", copies["false_merges"], pages),
        (
            "recall of personal data",
            "0.98",
            with_interval(found["pii"], "recall"),
            f"{found['pii']['n']} spans",
        ),
        ("token F1 of the extracted text", "0.95", f"{text['f1']:.3f}", f"{text['n']} pages"),
    ]
    return table(["on held-out sites of the embedded web", "aim", "measured", "on"], rows)


# Speed


def speed_table() -> str:
    """Our models beside what one would take instead, measured in turns in one run."""
    training, decoding = metrics("speed/pretrain"), metrics("speed/generate")
    letters, tuning = metrics("speed/shakespeare")["gpt_oss"], metrics("speed/sft")["sft"]
    rows = [
        (
            "training step of `gpt_oss`",
            "transformers' GptOssForCausalLM",
            f"{training['gpt_oss']['times_reference']:.2f}",
            "1.2",
        )
    ]
    for count, aim in ((1, "2"), (32, "1.5")):
        speed = decoding[f"batch_{count}_float32"]["times_reference"]
        rows.append(
            (f"greedy decoding, batch {count}", "transformers' `generate`", f"{speed:.2f}", aim)
        )
    for width in (256, 1024):
        for cell in ("rnn", "lstm", "gru"):
            speed = training[f"{cell}_{width}"]["times_reference"]
            step = f"training step of `{cell}`, width {width:,}"
            rows.append((step, "torch.nn", f"{speed:.2f}", "0.8"))
    rows += [
        (
            "tinyshakespeare, `gpt_oss`",
            "a GPT-2 of the same size",
            f"{letters['times_reference']:.2f}",
            "1",
        ),
        (
            "a step of SFT in TRL's trainer",
            "a bare loop on the same batches",
            f"{1 / tuning['times_bare']:.2f}",
            "0.67",
        ),
    ]
    return table(["what", "compared with", "times as fast", "aim"], rows)


def shakespeare_table() -> str:
    found = metrics("speed/shakespeare")
    order = ("gpt2_torch", *LANGUAGE_MODELS)
    rows = [
        (
            "GPT-2 of torch.nn" if name == "gpt2_torch" else name,
            found[name]["parameters"],
            str(found[name]["learning_rate"]),
            f"{found[name]['milliseconds_per_step']:.0f}",
            f"{found[name]['val_nats']:.3f}",
        )
        for name in order
    ]
    head = ["model", "parameters", "learning rate", "ms per step", "held-out nats per letter"]
    return table(head, rows)


def scaling_table() -> str:
    found = metrics("speed/scaling")
    sizes = [values for name, values in found.items() if name.startswith("width_")]
    sizes.sort(key=lambda values: values["parameters"])
    rows = [
        (
            values["parameters"],
            values["active_parameters"],
            values["tokens"],
            f"{values['val_bits_per_byte']:.3f}",
        )
        for values in sizes
    ]
    return table(["parameters", "active", "tokens read", "bits per byte"], rows)


def filter_speed_table() -> str:
    found = metrics("speed/filter")
    rows = []
    for name, label in (
        ("whole", "real pages"),
        ("joined", "joined from small old pages, denser in text and markup"),
    ):
        kinds = found[name]
        speeds = (
            f"{kinds[kind]['pages_per_s_core']:.0f}"
            for kind in ("resiliparse", "cascade", "datatrove")
        )
        rows.append((label, f"{kinds['page_bytes'] / 1000:.0f} KB", *speeds))
    return table(["pages", "mean size", "`resiliparse`", "`cascade`", "datatrove"], rows)


def extraction_table() -> str:
    found = metrics("speed/extraction")
    rows = [
        (f"`{name}`", f"{found[name]['f1']:.3f}", f"{found[name]['pages_per_s']:.0f}")
        for name in ("cascade", "resiliparse", "trafilatura")
    ]
    return table(["extractor", "token F1", "pages a second"], rows)


def waiting_table() -> str:
    """How long customers of the page wait, by how many ask at the same time."""
    found = metrics("speed/demo")
    rows = [
        (
            int(count),
            *(
                f"{found[count][part][quantile]:.2f}"
                for part in ("first_token", "whole")
                for quantile in ("p50", "p95")
            ),
        )
        for count in sorted((key for key in found if key.isdigit()), key=int)
    ]
    head = ["customers", "first word, median", "first word, p95", "whole, median", "whole, p95"]
    return table(head, rows)


def gpu_table() -> str:
    found = metrics("speed/h200")
    training = found["pretrain"]
    rows = [
        (
            label,
            aim,
            f"{training[name]['tokens_per_s']:,.0f}",
            f"{percent(training[name]['mfu'])} of the peak bfloat16 rate",
        )
        for name, label, aim in (
            ("dense_124m", "124M dense, tokens/s", "490,000"),
            ("gpt_oss_410m", "410M mixture of experts, tokens/s", "350,000"),
            ("lstm_2x1024", "LSTM of 2 x 1,024, tokens/s", "1,000,000"),
        )
    ]
    for name, unit in (("sft", "row"), ("dpo", "pair")):
        step = found[name]["tokens_4096"]
        rows.append(
            (
                f"LoRA {name.upper()} of gpt-oss-20b's shape, 4,096 tokens: GiB",
                "76",
                f"{step['memory_gib']:.1f}",
                f"{step['seconds_per_step']:.1f} s a {unit}",
            )
        )
    decode = found["decode"]
    speeds = [f"{decode[f'batch_{count}']['tokens_per_s']:,.0f}" for count in (1, 16, 64)]
    rows.append(("decoding with our cache, batch 1, 16, 64: tokens/s", "", ", ".join(speeds), ""))
    errors = [max(part.values()) for name, part in found["parity"].items() if "output" in part]
    rows.append(("largest relative error against the CPU, float32", "", f"{max(errors):.1e}", ""))
    return table(["on one H200", "aim", "measured", "remark"], rows)


# The graph


def graph() -> str:
    """The graph of dvc.yaml for Mermaid, one line for all edges that leave a stage."""
    command = [DVC, "dag", "--collapse-foreach-matrix", "--mermaid"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r'(node\d+)\["(\w+)"\]', drawn))
    targets: dict[str, list[str]] = {}
    for source, target in re.findall(r"(node\d+)-->(node\d+)", drawn):
        targets.setdefault(names[source], []).append(names[target])
    order = list(dict.fromkeys(name.partition("@")[0] for name in definitions(ROOT, "cpu")))
    edges = [
        f"    {source} --> {' & '.join(sorted(targets[source], key=order.index))}"
        for source in order
        if source in targets
    ]
    return "\n".join(["```mermaid", "flowchart TD", *edges, "```"])


PARTS: dict[str, Callable[[], str]] = {
    "headlines": headline_table,
    "limitations": limitations,
    "graph": graph,
    "language models": language_models_table,
    "agents": agent_table,
    "baselines": baselines_table,
    "gates": gates_table,
    "router": router_table,
    "filter": filter_table,
    "machine": lambda: f"Measured on {MACHINE}.",
    "speed": speed_table,
    "shakespeare": shakespeare_table,
    "scaling": scaling_table,
    "filter speed": filter_speed_table,
    "extraction": extraction_table,
    "waiting": waiting_table,
    "gpu": gpu_table,
    "snapshot": snapshot_table,
    "sizes": sizes_table,
    "crawl": crawl_table,
    "prose": prose_table,
}
PART = re.compile(r"^<!-- ([\w ]+) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


def documents(root: Path = ROOT) -> Sequence[Path]:
    """The pages that may hold generated parts."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def part_names(text: str) -> Iterator[str]:
    return (match[1] for match in PART.finditer(text))


def fill_parts(text: str) -> str:
    """Return a page's text with every generated part renewed. KeyError: no such part."""

    def render(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{PARTS[match[1]]()}\n<!-- end -->"

    return PART.sub(render, text)


if __name__ == "__main__":
    for path in documents():
        path.write_text(fill_parts(path.read_text()))
