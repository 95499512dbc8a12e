"""Train GPT-OSS in three sizes on the same tokens, for a table and a plot.

    python -m benchmarks.scaling        # three trainings, the last as long as `pretrain`'s

in   data/tokens, data/tokenizer (`dvc repro encode`), params.yaml
out  metrics/speed/scaling.json: {width_<n>: {val_bits_per_byte, parameters, active_parameters,
     tokens}}, metrics/speed/scaling.png

Width and heads take a quarter, a half and all of the profile's size. Depth, head size, data, order
and learning rate stay.
Kaplan et al. 2020, https://arxiv.org/abs/2001.08361.
"""

import argparse

import matplotlib

from benchmarks.report import FOLDER, write_report
from benchmarks.tune import ROOT, pretrained
from crawl2cart.core.params import read_params

SHARES = (0.25, 0.5, 1.0)


def sizes(model: dict, share: float) -> dict:
    """Return what changes: a share of the width, of the heads (at least one), of the experts."""
    heads = max(1, round(share * model["num_heads"]))
    return {
        "hidden_size": round(share * model["hidden_size"]),
        "intermediate_size": round(share * model["intermediate_size"]),
        "num_heads": heads,
        "num_kv_heads": max(1, round(share * model["num_kv_heads"])) if heads > 1 else 1,
    }


def plot(results: dict) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    rows = list(results.values())
    axes.plot(
        [row["active_parameters"] for row in rows], [row["val_bits_per_byte"] for row in rows], "o-"
    )
    axes.set(
        xscale="log",
        xlabel="active parameters",
        ylabel="bits per byte of validation text",
        title=f"GPT-OSS after {rows[0]['tokens']:,} tokens",
    )
    axes.grid(alpha=0.3)
    figure.savefig(FOLDER / "scaling.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, help="steps of each size (those of the profile)")
    parser.add_argument("--threads", type=int, default=2, help="of each run (%(default)s)")
    arguments = parser.parse_args()
    params = read_params(ROOT / "params.yaml")
    profile = getattr(params.profiles, params.profile)
    model, results = profile.models.gpt_oss.model_dump(), {}
    for share in SHARES:
        changed = sizes(model, share)
        row = pretrained(
            "gpt_oss",
            arguments.steps or profile.pretrain.max_steps,
            arguments.threads,
            sizes=changed,
        )
        results[f"width_{changed['hidden_size']}"] = row
        print(changed, row, flush=True)
    write_report("scaling", results)
    plot(results)


if __name__ == "__main__":
    main()
