"""Let the pretrained gpt_oss practise calls and copying on packed dialogues and web text, before TRL takes over.

in   models/pretrain/gpt_oss, data/sft/train.jsonl, data/sft/tools.json, data/tokens/train.bin
out  models/base (weights, tokenizer and chat template for transformers), metrics/midtrain.tsv

A window begins with the one prefix that every dialogue has and then holds as many whole dialogues as fit, so that no time
goes into reading the tools anew for each. The loss covers what the assistant writes, and the web text. Where the profile names a model of
the hub, it is taken as it is and only a pointer is written.
The name and the idea: OLMo 2, https://arxiv.org/abs/2501.00656
"""

import re
from pathlib import Path

import numpy as np
import torch
from tiktoken import Encoding
from torch import Tensor

from stages.common.checkpoint import open_checkpoint
from stages.common.device import open_device
from stages.common.files import atomic_directory, read_json, read_jsonl, write_json
from stages.common.metrics import write_curve
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.stage import Stage, run
from stages.nn import tokenizer as tokenizers
from stages.nn.data import open_tokens
from stages.nn.export import load_gpt_oss, save_model
from stages.nn.losses import IGNORE
from stages.nn.optim import adamw, learning_rate, load_optimizers, optimizer_tensors
from stages.shop import harmony

ASSISTANT_TURN = re.compile(r"(?<=<\|start\|>assistant)(.*?(?:<\|call\|>|<\|end\|>|<\|return\|>))", re.DOTALL)


def encode_dialogues(tokenizer: Encoding, dialogues: list[dict], tools: list[dict]) -> tuple[list[int], list[list[int]]]:
    """The ids of the prefix that all dialogues have, and of each dialogue behind it, ended by <|endoftext|>.

    What is read but not learnt is negative, -1 - id: the prefix, what customers say and what tools return.
    """
    before = harmony.prefix(tools)

    def encode(text: str) -> list[int]:
        found = []
        for number, part in enumerate(ASSISTANT_TURN.split(text)):  # every second part is what the assistant wrote
            ids = tokenizer.encode(part, allowed_special="all")
            found += ids if number % 2 else [-1 - token for token in ids]
        return found

    encoded = []
    for dialogue in dialogues:
        text = harmony.render(dialogue["messages"], tools)
        assert text.startswith(before), "a dialogue does not begin with the common prefix"
        encoded.append(encode(text[len(before):] + tokenizers.END_OF_TEXT))
    return encode(before), encoded


def pack(prefix: list[int], dialogues: list[list[int]], windows: int, context: int, random: np.random.Generator) -> np.ndarray:
    """(windows, context + 1) ids as `encode_dialogues` gives them.

    Dialogues come in a new random order each time all have been used; each window holds whole ones, the rest is filled
    with <|endoftext|>. A dialogue that does not fit behind the prefix is a Problem.
    """
    longest = max(map(len, dialogues))
    if len(prefix) + longest > context + 1:
        raise Problem(f"The longest dialogue has {longest} tokens behind a prefix of {len(prefix)}, but midtrain.context is "
                      f"{context}. Raise it in the profile.")
    packed = np.full((windows, context + 1), dialogues[0][-1], np.int64)
    order: list[int] = []
    for row in packed:
        row[:len(prefix)] = prefix
        filled = len(prefix)
        while True:
            if not order:
                order = random.permutation(len(dialogues)).tolist()
            if filled + len(dialogues[order[-1]]) > context + 1:
                break
            dialogue = dialogues[order.pop()]
            row[filled:filled + len(dialogue)] = dialogue
            filled += len(dialogue)
    return packed


def web_windows(tokens: np.ndarray, windows: int, context: int, random: np.random.Generator) -> np.ndarray:
    """(windows, context + 1) ids of web text from random places."""
    starts = random.integers(0, max(1, len(tokens) - context - 1), windows)
    return np.stack([np.resize(tokens[start:start + context + 1], context + 1) for start in starts]).astype(np.int64)


def inputs_and_targets(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """(B, T) inputs and targets of packed rows (B, T + 1); what is not learnt is IGNORE among the targets."""
    ids = torch.from_numpy(np.where(rows < 0, -1 - rows, rows))
    learnt = torch.from_numpy(rows >= 0)
    return ids[:, :-1], ids[:, 1:].where(learnt[:, 1:], IGNORE)


def practise(stage: Stage, model, rows: np.ndarray, device) -> list[dict]:
    """Trains on the rows in their order, one batch of them a step; returns the curve. Resumes where it was killed."""
    midtrain, scale = stage.params.midtrain, stage.params.profile.midtrain
    batch = scale.tokens_per_step // scale.context
    optimizer = adamw(model, midtrain.weight_decay, 0.9, 0.95)
    start, curve, loss_sum = 0, [], 0.0
    with open_checkpoint(stage) as checkpoint:
        if saved := checkpoint.load():
            tensors, state = saved
            model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items()
                                   if name.startswith("model.")})
            load_optimizers(tensors, optimizer)
            start, curve, loss_sum = state["step"], state["curve"], state["loss_sum"]
            print(f"going on at step {start}")
        for step in progress(range(start, scale.steps), "midtrain", "step", total=scale.steps, first=start):
            rate = learning_rate(step, scale.steps, midtrain.learning_rate, midtrain.warmup_share, midtrain.final_share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            inputs, targets = inputs_and_targets(rows[step * batch:(step + 1) * batch])
            with device.autocast():
                loss, _ = model.loss(inputs.to(device.kind), targets.to(device.kind))
            if not torch.isfinite(loss):
                raise Problem(f"The loss is {loss.item()} at step {step}, rows {step * batch} to {(step + 1) * batch - 1}. "
                              "Lower midtrain.learning_rate.")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), midtrain.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss_sum += loss.item()
            done = step + 1
            if done % scale.steps_per_look == 0 or done == scale.steps:
                since = done - (curve[-1]["step"] if curve else 0)
                curve.append({"step": done, "loss": loss_sum / since})
                loss_sum = 0.0
                tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
                checkpoint.save(tensors | optimizer_tensors(optimizer), {"step": done, "curve": curve, "loss_sum": loss_sum})
    return curve


def add_template(folder: Path) -> None:
    """Puts the chat template where transformers and its server look for it."""
    (folder / "chat_template.jinja").write_text(harmony.TEMPLATE)


def main(stage: Stage) -> None:
    midtrain, profile, seed = stage.params.midtrain, stage.params.profile, stage.params.seed
    scale, pretrained = profile.midtrain, Path("models/pretrain/gpt_oss")
    if scale.base_model != "pretrained":
        with atomic_directory("models/base") as folder:
            write_json(folder / "pointer.json", {"hub_id": scale.base_model, "revision": scale.revision})
            add_template(folder)
        write_curve("metrics/midtrain.tsv", [{"step": 0, "loss": 0.0}])
        return
    device = open_device(profile.device, profile.dtype, profile.threads, seed)
    model = load_gpt_oss(pretrained).to(device.kind)
    tokenizer = tokenizers.load(pretrained)
    prefix, dialogues = encode_dialogues(tokenizer, read_jsonl("data/sft/train.jsonl"), read_json("data/sft/tools.json"))

    random = np.random.default_rng(seed)
    windows = scale.steps * (scale.tokens_per_step // scale.context)
    from_web = max(1, round(midtrain.web_share * windows))
    rows = np.concatenate([pack(prefix, dialogues, windows - from_web, scale.context, random),
                           web_windows(open_tokens("data/tokens", "train"), from_web, scale.context, random)])
    curve = practise(stage, model, rows[random.permutation(windows)], device)

    with atomic_directory("models/base") as folder:
        save_model(model, folder, tokenizer)
        add_template(folder)
    write_curve("metrics/midtrain.tsv", curve)


if __name__ == "__main__":
    run(main)
