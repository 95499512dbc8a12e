"""Find each model's learning rate: the same values, steps and tokens for all five, by the very program that trains them.

    python -m benchmarks.tune                   # all five
    python -m benchmarks.tune mlp --steps 320 --rates 0.0032 0.0064 0.0128   # one of them, as long as it trains

in   data/tokens, data/tokenizer (`dvc repro encode`), params.yaml
out  metrics/speed/tune.json: {model: {bits_per_byte: {learning rate: bits per byte on validation}, best, steps, threads}}
Each run is a whole one: its learning rate has risen and fallen when validation is read. What a short one can not show is
that a high rate learns the corpus by heart in a long one, so where that is in question, give the steps of the profile.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.report import measured_before, write_report
from stages.common.files import read_json

MODELS = ("mlp", "rnn", "lstm", "gru", "gpt_oss")
RATES = (0.0016, 0.0032, 0.0064, 0.0128)
ROOT = Path(__file__).parent.parent


def pretrained(model: str, steps: int, threads: int, rate: float | None = None, sizes: dict | None = None) -> dict | None:
    """The metrics that `python -m stages.pretrain` writes with this learning rate and these sizes in place of those in
    params.yaml; None if the loss was not finite."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("stages", "dvc.yaml", "requirements.txt"):
            (root / name).symlink_to(ROOT / name)
        (root / "data").mkdir()
        for name in ("tokens", "tokenizer"):
            (root / "data" / name).symlink_to(ROOT / "data" / name)
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
        if rate is not None:
            params["pretrain"][model]["learning_rate"] = rate
        profile = params["profiles"][params["profile"]]
        profile.update(threads=threads, processes=1)
        profile["pretrain"].update(steps=steps, steps_per_look=steps)
        profile["models"][model].update(sizes or {})
        yaml.dump(params, root / "params.yaml")
        said = subprocess.run([sys.executable, "-m", "stages.pretrain", model], cwd=root, capture_output=True, text=True,
                              env={key: value for key, value in os.environ.items() if key != "DVC_ROOT"})
        if "The loss of step" in said.stderr:
            return None
        if said.returncode:
            sys.exit(said.stderr)
        return read_json(root / "metrics" / "pretrain" / f"{model}.json")[model]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="model", help="mlp, rnn, lstm, gru, gpt_oss (all)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each run (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates to try (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each run (%(default)s)")
    words = parser.parse_args()
    kept = measured_before("tune")
    for model in words.models:
        reached = {}
        for rate in words.rates:
            metrics = pretrained(model, words.steps, words.threads, rate)
            reached[str(rate)] = metrics and metrics["val_bits_per_byte"]
            print(f"{model}: learning rate {rate}, {reached[str(rate)]} bits per byte", flush=True)
        finite = {rate: value for rate, value in reached.items() if value is not None}
        kept[model] = {"bits_per_byte": reached, "best": float(min(finite, key=finite.get)), "steps": words.steps,
                       "threads": words.threads}
        write_report("tune", {name: kept[name] for name in MODELS if name in kept})


if __name__ == "__main__":
    main()
