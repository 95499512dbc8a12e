"""Teach the pretrained gpt_oss to call tools and to copy values, before TRL takes over.

in   models/pretrain/gpt_oss, data/sft/{train.jsonl,tools.json,lexicon.json}, data/tokens/train.bin
out  models/base (weights, tokenizer and chat template for transformers), metrics/midtrain.tsv

The model starts with induction heads (lm/models/induction_head_init.py). Names are new in every
dialogue (dialogues/entity_randomization.py), and attention is supervised where the right place is
known (lm/training/attention_supervision.py). The first steps train on first decisions alone, later
ones on dialogues, on beginnings of dialogues, and on web text. All dialogues begin with the same
instructions and tools, which a step reads once, without a gradient. Where the profile names a model
of the hub, only a pointer to it is written.
The name and the idea: OLMo 2, https://arxiv.org/abs/2501.00656
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from tiktoken import Encoding
from torch import Tensor

from crawl2cart.core.device import Device, open_device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, read_json, read_jsonl, write_json
from crawl2cart.core.metrics import write_curve
from crawl2cart.core.progress import progress
from crawl2cart.core.stage import Stage, run
from crawl2cart.core.training_state import Checkpoint, open_checkpoint
from crawl2cart.dialogues.entity_randomization import EntityRandomizer
from crawl2cart.dialogues.tokenized import CONTEXT, Example, encode
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.formats.save import load_gpt_oss, save_model
from crawl2cart.lm.models.embedding_init import token_classes
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.induction_head_init import add_induction_heads
from crawl2cart.lm.training.attention_supervision import GuidedHeads, Places
from crawl2cart.lm.training.data import open_tokens
from crawl2cart.lm.training.distributed import ProcessGroup, open_process_group, wrap_distributed
from crawl2cart.lm.training.flops import flops_of_rows
from crawl2cart.lm.training.losses import IGNORE
from crawl2cart.lm.training.optim import (
    learning_rate,
    load_optimizers,
    muon_and_adamw,
    optimizer_tensors,
)
from crawl2cart.shop.grounding import ShopVocabulary

POOL = 256  # dialogues sorted by length together, so that a step needs little padding
WEB_ROW = 512  # tokens in a row of web text
FITTED_ROWS, FITTED_LENGTH = 64, 256  # dialogue text on which the induction heads are fitted


def rows_of(
    stage: Stage, tokenizer: Encoding, family: list[int]
) -> tuple[list[int], list[Example], list[Example]]:
    """Return the ids of the common prefix, first decisions, and dialogues, as many as steps need.

    After a whole dialogue come `truncated_per_full` beginnings of others. Names are new each time.
    """
    midtrain, scale, seed = stage.params.midtrain, stage.params.profile.midtrain, stage.params.seed
    tools, dialogues = read_json("data/sft/tools.json"), read_jsonl("data/sft/train.jsonl")
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.n_vocab)]
    renamer = EntityRandomizer(ShopVocabulary.read("data/sft/lexicon.json"), pieces)
    before = harmony.prefix(tools)

    def row(dialogue: dict, random: Random, whole: bool) -> Example:
        messages = dialogue["messages"] if whole else beginning(dialogue["messages"])
        if random.random() < midtrain.randomize_entities:
            messages = renamer.randomize(
                messages, random, kinds=random.random() < midtrain.randomize_categories
            )
        text = harmony.render(messages, tools)
        assert text.startswith(before), "a dialogue does not begin with the common prefix"
        made = encode(tokenizer, family, text[len(before) :], dialogue["id"])
        renamer.copy_counts.update(pieces[made.ids[query + 1]] for query in made.places.copied)
        return made

    def enough(made: Iterable[Example], steps: int) -> list[Example]:
        rows, tokens = [], 0
        while tokens < steps * scale.batch_tokens:
            rows.append(next(made))
            tokens += len(rows[-1].ids)
        return rows

    def decisions() -> Iterator[Example]:
        for number in itertools.count():
            dialogue, random = (
                dialogues[number % len(dialogues)],
                Random(f"{seed}:decision:{number}"),
            )
            yield row(dialogue, random, whole=False).until_tool_choice()

    def parts() -> Iterator[Example]:
        for number in itertools.count():
            again, which = divmod(number, len(dialogues))
            # In another round a dialogue has another part.
            whole = (number + again) % (1 + midtrain.truncated_per_full) == 0
            yield row(dialogues[which], Random(f"{seed}:{number}"), whole)

    first = decision_steps(stage)
    return (
        tokenizer.encode(before, allowed_special="all"),
        enough(decisions(), first),
        enough(parts(), scale.max_steps - first),
    )


def decision_steps(stage: Stage) -> int:
    """Return how many of the first steps train on first decisions alone."""
    return round(stage.params.midtrain.curriculum_ratio * stage.params.profile.midtrain.max_steps)


def beginning(messages: list[dict]) -> list[dict]:
    """Return the messages up to the assistant's first one."""
    first = [message["role"] for message in messages].index("assistant")
    return messages[: first + 1]


def plan_batches(
    numbers: Sequence[int],
    lengths: Sequence[int],
    steps: int,
    tokens: int,
    processes: int,
    replay_ratio: float,
    random: np.random.Generator,
) -> list[list[list[int]]]:
    """Return for each step a batch of rows for each process, an empty one where all read web text.

    numbers: of the rows. lengths: of each in tokens. The rows of a batch, padded to its longest,
    hold at most `tokens` tokens, and batches of one step about the same number, so that no process
    waits long. All rows are used once, in random order, before one is used again, but for the few
    of a step that is not full. Raises UserError if a row is longer than a batch.
    """
    longest = max((lengths[number] for number in numbers), default=0)
    if longest > tokens:
        raise UserError(
            f"The longest dialogue has {longest} tokens, but midtrain.batch_tokens leaves each "
            f"process {tokens}. Raise it in the profile."
        )
    planned: list[list[list[int]]] = []
    batches: list[list[int]] = []
    while len(planned) < steps:
        order = random.permutation(numbers)
        for pool in np.split(order, range(POOL, len(order), POOL)):
            rows: list[int] = []
            for number in sorted(pool.tolist(), key=lengths.__getitem__):
                if (len(rows) + 1) * lengths[number] > tokens:
                    batches.append(rows)
                    rows = []
                rows.append(number)
            batches.append(rows)
        batches.sort(key=lambda rows: len(rows) * lengths[rows[-1]])
        groups = [
            batches[first : first + processes]
            for first in range(0, len(batches) - processes + 1, processes)
        ]
        batches = batches[processes * len(groups) :]  # too few for a step: into the next round
        planned += [groups[number] for number in random.permutation(len(groups))]
    planned = planned[:steps]
    for step in random.choice(steps, round(replay_ratio * steps), replace=False):
        planned[step] = [[]] * processes
    return planned


def collate(rows: list[Example], weights: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets and the targets' weights (B, T), padded at the right with IGNORE.

    weights: of CONTEXT, REPLY, ARGUMENTS and TOOL_CHOICE.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [IGNORE] * (longest - len(row.ids)) for row in rows])
    parts = torch.tensor([row.parts + [CONTEXT] * (longest - len(row.ids)) for row in rows])
    return ids[:, :-1].clamp(min=0), ids[:, 1:], torch.tensor(weights)[parts[:, 1:]]


def web_rows(
    tokens: np.ndarray, count: int, length: int, random: np.random.Generator
) -> list[Example]:
    """Return `count` rows of web text, `length` inputs long, from random places."""
    starts = random.integers(0, max(1, len(tokens) - length - 1), count)
    ids = [tokens[start : start + length + 1].tolist() for start in starts]
    return [Example(row, [CONTEXT] * len(row), Places({}, {}, [])) for row in ids]


def stack_rows(rows: list[Example], count: int, length: int) -> Tensor:
    """Return the first tokens of the dialogues, one behind the other, as (≤ count, length)."""
    tokens = list(itertools.islice((token for row in rows for token in row.ids), count * length))
    return torch.tensor(tokens[: len(tokens) // length * length]).view(-1, length)


def practise(
    stage: Stage,
    group: ProcessGroup,
    model: GptOss,
    prefix: list[int],
    decisions: list[Example],
    dialogues: list[Example],
    web: np.ndarray,
    device: Device,
    checkpoint: Checkpoint,
) -> list[dict]:
    """Train on first decisions, then on dialogues and web text; return the curve.

    Resumes where it was killed. prefix: ids that stand before each decision and dialogue.
    """
    midtrain, scale, seed = stage.params.midtrain, stage.params.profile.midtrain, stage.params.seed
    shared, tokens = torch.tensor([prefix], device=device.kind), scale.batch_tokens // group.size
    of_part = midtrain.loss_weights
    weights = (1.0, of_part.reply, of_part.arguments, of_part.tool_choice)
    rows, first, random = decisions + dialogues, decision_steps(stage), np.random.default_rng(seed)
    lengths = [len(row.ids) for row in rows]
    planned = plan_batches(range(len(decisions)), lengths, first, tokens, group.size, 0.0, random)
    planned += plan_batches(
        range(len(decisions), len(rows)),
        lengths,
        scale.max_steps - first,
        tokens,
        group.size,
        midtrain.replay_ratio,
        random,
    )
    loss_of, guided = wrap_distributed(model, group, sharded=False), GuidedHeads(model)
    optimizers = muon_and_adamw(model, midtrain.weight_decay, 0.9, 0.95, group)
    start, curve, losses, tokens_read, operations = 0, [], [], 0, 0.0
    if saved := checkpoint.load():
        tensors, state = saved
        model.load_state_dict(
            {
                name.removeprefix("model."): value
                for name, value in tensors.items()
                if name.startswith("model.")
            }
        )
        load_optimizers(tensors, *optimizers)
        start, curve = state["step"], state["curve"]
        print(f"going on at step {start}", flush=True)
    group.barrier()  # all have read before the first may write
    for step in progress(
        range(start, scale.max_steps), "midtrain", "step", total=scale.max_steps, first=start
    ):
        rate = learning_rate(
            step,
            scale.max_steps,
            midtrain.learning_rate,
            midtrain.warmup_ratio,
            midtrain.min_lr_ratio,
        )
        for options in (options for optimizer in optimizers for options in optimizer.param_groups):
            options["lr"] = rate
        chosen = planned[step][group.rank]
        batch = [rows[number] for number in chosen] or web_rows(
            web, max(1, tokens // WEB_ROW), WEB_ROW, np.random.default_rng([seed, step, group.rank])
        )
        inputs, targets, importance = (part.to(device.kind) for part in collate(batch, weights))
        with device.autocast():
            loss, _ = loss_of(
                inputs, targets, model.prefill(shared) if chosen else None, importance
            )
            guide = midtrain.guide_weight * guided.loss(
                [row.places for row in batch], midtrain.idle_weight
            )
        losses.append(group.mean(loss.detach().clone()).item())
        if not np.isfinite(losses[-1]):
            read = (
                f"{', '.join(rows[number].dialogue for number in chosen)} of data/sft/train.jsonl"
                if chosen
                else "web text"
            )
            raise UserError(
                f"The loss is {losses[-1]} at step {step}, on {read}, or on what another process "
                "read. Lower midtrain.learning_rate."
            )
        tokens_read += inputs.numel()
        operations += flops_of_rows(
            model, [inputs.size(1)] * len(batch), len(prefix) if chosen else 0
        )
        (loss + guide).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), midtrain.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % scale.eval_interval == 0 or done == scale.max_steps:
            curve.append({"step": done, "loss": float(np.mean(losses))})
            losses = []
            if group.is_main:
                tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
                checkpoint.save(
                    tensors | optimizer_tensors(*optimizers), {"step": done, "curve": curve}
                )
    stage.log_cost(group.size * tokens_read, group.size * operations)  # all do the same amount
    return curve


def add_template(folder: Path) -> None:
    """Put the chat template where transformers and its server look for it."""
    (folder / "chat_template.jinja").write_text(harmony.TEMPLATE)


def main(stage: Stage) -> None:
    profile = stage.params.profile
    scale, pretrained = profile.midtrain, Path("models/pretrain/gpt_oss")
    if scale.base_model != "pretrained":
        with atomic_directory("models/base") as folder:
            pointer = {"hub_id": scale.base_model, "revision": scale.revision}
            write_json(folder / "pointer.json", pointer)
            add_template(folder)
        write_curve("metrics/midtrain.tsv", [{"step": 0, "loss": 0.0}])
        return
    device = open_device(
        profile.device, profile.dtype, profile.threads // profile.num_processes, stage.params.seed
    )
    model, tokenizer = load_gpt_oss(pretrained), tokenizers.load(pretrained)
    web = open_tokens("data/tokens", "train")
    family = token_classes(tokenizer, len(model.embedding))
    with open_process_group(device.kind, profile.num_processes, stage.program) as group:
        prefix, decisions, dialogues = rows_of(stage, tokenizer, family.tolist())
        add_induction_heads(
            model, stack_rows(dialogues, FITTED_ROWS, FITTED_LENGTH), family, stage.params.seed
        )
        opened = open_checkpoint(stage)
        if not group.is_main:
            opened = contextlib.nullcontext(Checkpoint(stage))
        model.to(device.kind)
        rows = prefix, decisions, dialogues
        with opened as checkpoint:
            curve = practise(stage, group, model, *rows, web, device, checkpoint)
            group.barrier()
        if not group.is_main:
            return
    with atomic_directory("models/base") as folder:
        save_model(model, folder, tokenizer)
        add_template(folder)
    write_curve("metrics/midtrain.tsv", curve)


if __name__ == "__main__":
    run(main)
