"""Measure seconds per turn of our engine and of transformers' `generate` on the same test turns.

python -m benchmarks.answers [folder] [turns]
"""

import os
import sys
import time

from benchmarks.report import write_report
from crawl2cart.agent.local_writer import LocalWriter, answer_turns, open_folder
from crawl2cart.core.device import open_device
from crawl2cart.core.files import read_jsonl
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.lm.inference.engine import Engine
from crawl2cart.lm.inference.hf_engine import HfEngine
from crawl2cart.lm.training.trl_utils import open_model

BATCH, MAX_NEW_TOKENS = 64, 120


def main(folder: str = "models/sft", turns: str = "64") -> None:
    device = open_device("cpu", "bfloat16", len(os.sched_getaffinity(0)), 7)
    dialogues = read_jsonl("data/sft/test.jsonl")
    rows = [row for dialogue in dialogues for row in to_examples(dialogue)][: int(turns)]
    model, tokenizer = open_model(folder, device)
    hf_engine = HfEngine(model, tokenizer.pad_token_id)
    writers = {
        "own": open_folder(folder, device, MAX_NEW_TOKENS),
        "transformers": LocalWriter(hf_engine, tokenizer, device, MAX_NEW_TOKENS),
    }
    assert isinstance(writers["own"].engine, Engine), f"{folder} holds no GPT-OSS of ours"
    seconds, texts = {}, {}
    for name, writer in writers.items():
        started = time.process_time()
        texts[name] = answer_turns(writer, rows, BATCH, name)
        seconds[name] = (time.process_time() - started) / len(rows)
    same = sum(a == b for a, b in zip(texts["own"], texts["transformers"], strict=True)) / len(rows)
    write_report(
        "answers",
        {
            "answers": {
                "turns": len(rows),
                "batch": BATCH,
                "own_core_seconds_per_turn": seconds["own"],
                "transformers_core_seconds_per_turn": seconds["transformers"],
                "times_transformers": seconds["transformers"] / seconds["own"],
                "same_text": same,
            }
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
