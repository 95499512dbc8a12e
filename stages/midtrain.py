"""Let the pretrained gpt_oss practise calls and copying on dialogues, with some web text, before TRL takes over.

in   models/pretrain/gpt_oss, data/sft/train.jsonl, data/sft/tools.json, data/tokens/train.bin
out  models/base (weights, tokenizer and chat template for transformers), metrics/midtrain.tsv

Every dialogue begins with the same instructions and tools: a step reads them once, without a gradient, and trains on rows that go on from
there, one dialogue each. The loss covers all of a dialogue, since what tools return and customers say is full of what must be learnt
here, to copy. Where the profile names a model of the hub, it is taken as it is and only a pointer is written.
The name and the idea: OLMo 2, https://arxiv.org/abs/2501.00656
"""

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
from stages.nn.speed import flops_per_token
from stages.shop import harmony

POOL = 64        # dialogues that are sorted by length, so that those of a step need little padding
WEB_ROW = 512    # tokens in a row of web text


def encode_dialogues(tokenizer: Encoding, dialogues: list[dict], tools: list[dict]) -> tuple[list[int], list[list[int]]]:
    """The ids of the prefix that all dialogues have, and of each dialogue behind it, ended by <|endoftext|>."""
    before = harmony.prefix(tools)
    encoded = []
    for dialogue in dialogues:
        text = harmony.render(dialogue["messages"], tools)
        assert text.startswith(before), "a dialogue does not begin with the common prefix"
        encoded.append(tokenizer.encode(text[len(before):] + tokenizers.END_OF_TEXT, allowed_special="all"))
    return tokenizer.encode(before, allowed_special="all"), encoded


def plan(lengths: list[int], steps: int, tokens_per_step: int, web_share: float, random: np.random.Generator) -> list[list[int]]:
    """Which dialogues each step trains on; none: web text.

    The rows of a step, padded to its longest, hold at most tokens_per_step tokens. All dialogues are used once, in random order,
    before one is used again. A dialogue that is longer than a step is a Problem.
    """
    if max(lengths) > tokens_per_step:
        raise Problem(f"The longest dialogue has {max(lengths)} tokens, but midtrain.tokens_per_step is {tokens_per_step}. Raise it in "
                      "the profile.")
    batches: list[list[int]] = []
    while len(batches) < steps:
        order, epoch = random.permutation(len(lengths)), []
        for pool in np.split(order, range(POOL, len(order), POOL)):
            rows: list[int] = []
            for number in sorted(pool.tolist(), key=lengths.__getitem__):
                if (len(rows) + 1) * lengths[number] > tokens_per_step:
                    epoch.append(rows)
                    rows = []
                rows.append(number)
            epoch.append(rows)
        batches += [epoch[number] for number in random.permutation(len(epoch))]
    batches = batches[:steps]
    for number in random.choice(steps, round(web_share * steps), replace=False):
        batches[number] = []
    return batches


def inputs_and_targets(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(B, T) inputs and targets of rows of ids, padded at the right, where targets are IGNORE."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [IGNORE] * (longest - len(row)) for row in rows])
    return ids[:, :-1].clamp(min=0), ids[:, 1:]


def web_rows(tokens: np.ndarray, count: int, random: np.random.Generator) -> list[list[int]]:
    """`count` rows of web text from random places."""
    starts = random.integers(0, max(1, len(tokens) - WEB_ROW - 1), count)
    return [tokens[start:start + WEB_ROW + 1].tolist() for start in starts]


def practise(stage: Stage, model, prefix: list[int], dialogues: list[list[int]], web: np.ndarray, device) -> list[dict]:
    """Trains on dialogues, behind the prefix, and on web text; returns the curve. Resumes where it was killed."""
    midtrain, scale, seed = stage.params.midtrain, stage.params.profile.midtrain, stage.params.seed
    shared = torch.tensor([prefix], device=device.kind)
    batches = plan(list(map(len, dialogues)), scale.steps, scale.tokens_per_step, midtrain.web_share, np.random.default_rng(seed))
    optimizer = adamw(model, midtrain.weight_decay, 0.9, 0.95)
    start, curve, loss_sum, tokens = 0, [], 0.0, 0
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
            rows = [dialogues[number] for number in batches[step]] or web_rows(
                web, max(1, scale.tokens_per_step // WEB_ROW), np.random.default_rng([seed, step]))
            inputs, targets = inputs_and_targets(rows)
            with device.autocast():
                state = model.after(shared) if batches[step] else None
                loss, _ = model.loss(inputs.to(device.kind), targets.to(device.kind), state)
            if not torch.isfinite(loss):
                raise Problem(f"The loss is {loss.item()} at step {step}, on the dialogues {batches[step]} of data/sft/train.jsonl (none: "
                              "web text). Lower midtrain.learning_rate.")
            tokens += inputs.numel()
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
    longest = max(map(len, dialogues))
    stage.count(tokens, flops_per_token(model, longest) * tokens)
    return curve


def add_template(folder: Path) -> None:
    """Puts the chat template where transformers and its server look for it."""
    (folder / "chat_template.jinja").write_text(harmony.TEMPLATE)


def main(stage: Stage) -> None:
    profile = stage.params.profile
    scale, pretrained = profile.midtrain, Path("models/pretrain/gpt_oss")
    if scale.base_model != "pretrained":
        with atomic_directory("models/base") as folder:
            write_json(folder / "pointer.json", {"hub_id": scale.base_model, "revision": scale.revision})
            add_template(folder)
        write_curve("metrics/midtrain.tsv", [{"step": 0, "loss": 0.0}])
        return
    device = open_device(profile.device, profile.dtype, profile.threads, stage.params.seed)
    model = load_gpt_oss(pretrained).to(device.kind)
    tokenizer = tokenizers.load(pretrained)
    prefix, dialogues = encode_dialogues(tokenizer, read_jsonl("data/sft/train.jsonl"), read_json("data/sft/tools.json"))

    curve = practise(stage, model, prefix, dialogues, open_tokens("data/tokens", "train"), device)

    with atomic_directory("models/base") as folder:
        save_model(model, folder, tokenizer)
        add_template(folder)
    write_curve("metrics/midtrain.tsv", curve)


if __name__ == "__main__":
    run(main)
