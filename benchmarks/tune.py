"""Find each model's learning rate, with the same budget for all five, by running `pretrain`.

    python -m benchmarks.tune                   # all five
    python -m benchmarks.tune mlp gru           # some of them

in   data/tokens, data/tokenizer (`dvc repro encode`), params.yaml
out  metrics/speed/tune.json: {model: {short_steps, short: {learning rate: validation bits per
     byte}, steps, whole: the same, best, threads}}

Every rate is tried in a short run with the whole schedule. A short run does not show that a high
rate learns the corpus by heart later. So the best rate and half of it run once more for as long as
the profile trains, and these decide.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.report import measured_before, write_report
from crawl2cart.core.files import read_json
from crawl2cart.core.params import read_params

MODELS = ("mlp", "rnn", "lstm", "gru", "gpt_oss")
RATES = (0.0016, 0.0032, 0.0064, 0.0128, 0.0256)
SHORT_STEPS = 80
ROOT = Path(__file__).parent.parent


def pretrained(
    model: str, steps: int, threads: int, rate: float | None = None, sizes: dict | None = None
) -> dict | None:
    """Return the metrics of `python -m stages.pretrain` with another learning rate and other sizes.

    None if the loss was not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("stages", "crawl2cart", "dvc.yaml", "requirements.txt"):
            (root / name).symlink_to(ROOT / name)
        (root / "data").mkdir()
        for name in ("tokens", "tokenizer"):
            (root / "data" / name).symlink_to(ROOT / "data" / name)
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
        if rate is not None:
            params["pretrain"][model]["learning_rate"] = rate
        profile = params["profiles"][params["profile"]]
        profile.update(threads=threads, num_processes=1)
        profile["pretrain"].update(max_steps=steps, eval_interval=steps)
        profile["models"][model].update(sizes or {})
        yaml.dump(params, root / "params.yaml")
        result = subprocess.run(
            [sys.executable, "-m", "stages.pretrain", model],
            cwd=root,
            capture_output=True,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "DVC_ROOT"},
        )
        if "The loss of step" in result.stderr:
            return None
        if result.returncode:
            sys.exit(result.stderr)
        return read_json(root / "metrics" / "pretrain" / f"{model}.json")[model]


def tried(model: str, rates: Sequence[float], steps: int, threads: int) -> dict[str, float | None]:
    """Return bits per byte with each rate; None where the loss was not finite."""
    reached: dict[str, float | None] = {}
    for rate in rates:
        metrics = pretrained(model, steps, threads, rate)
        reached[str(rate)] = metrics and metrics["val_bits_per_byte"]
        print(
            f"{model}: {steps} steps, learning rate {rate}, {reached[str(rate)]} bits per byte",
            flush=True,
        )
    return reached


def best(reached: dict[str, float | None]) -> float:
    return float(
        min((rate for rate, value in reached.items() if value is not None), key=reached.get)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "models",
        nargs="*",
        default=MODELS,
        metavar="model",
        help="mlp, rnn, lstm, gru, gpt_oss (all)",
    )
    parser.add_argument("--threads", type=int, default=2, help="of each run (%(default)s)")
    arguments = parser.parse_args()
    params = read_params(ROOT / "params.yaml")
    steps = getattr(params.profiles, params.profile).pretrain.max_steps
    kept = measured_before("tune")
    for model in arguments.models:
        short = tried(model, RATES, SHORT_STEPS, arguments.threads)
        whole = tried(model, (best(short), best(short) / 2), steps, arguments.threads)
        kept[model] = {
            "short_steps": SHORT_STEPS,
            "short": short,
            "steps": steps,
            "whole": whole,
            "best": best(whole),
            "threads": arguments.threads,
        }
        write_report("tune", {name: kept[name] for name in MODELS if name in kept})


if __name__ == "__main__":
    main()
