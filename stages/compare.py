"""Put the five language models side by side.

in   metrics/pretrain/{mlp,rnn,lstm,gru,gpt_oss}.json
out  metrics/pretrain.json: {model: {val_bits_per_byte, parameters, active_parameters, tokens}}

All saw the same tokens in the same order. Bits per byte do not depend on the tokenizer.
"""

from pathlib import Path

from crawl2cart.core.files import read_json
from crawl2cart.core.metrics import write_metrics
from crawl2cart.core.stage import Stage, run

# By name: a file left over from another version must not count.
MODELS = ("mlp", "rnn", "lstm", "gru", "gpt_oss")
FOLDER, TABLE = Path("metrics/pretrain"), Path("metrics/pretrain.json")
# The part that `dvc metrics show` prints.
HEADLINES = ("*.val_bits_per_byte",)


def main(stage: Stage) -> None:
    table = {name: read_json(FOLDER / f"{name}.json")[name] for name in MODELS}
    write_metrics(TABLE, table, HEADLINES)
    print(f"{'model':8} {'bits/byte':>9} {'parameters':>11} {'active':>11} {'tokens':>11}")
    for name in sorted(table, key=lambda name: table[name]["val_bits_per_byte"]):
        row = table[name]
        print(
            f"{name:8} {row['val_bits_per_byte']:9.3f} {row['parameters']:11,} "
            f"{row['active_parameters']:11,} {row['tokens']:11,}"
        )


if __name__ == "__main__":
    run(main)
