"""Train one language model from scratch on the crawl: `python -m stages.pretrain gru`.

in   data/tokens/{train,val}.bin, data/tokenizer
out  models/pretrain/<name> (weights, config, tokenizer, samples.json), metrics/pretrain/<name>.json (result) and .tsv (curve)

A fixed number of tokens a step, the same for all five models; recurrent ones carry their state from step to step (truncated
backpropagation through time, Williams & Peng 1990, https://doi.org/10.1162/neco.1990.2.4.490). On several processes
`torchrun --nproc_per_node=N -m stages.pretrain gpt_oss` gives the same curve (with dropout, another draw of it).
"""

import contextlib
import time

import numpy as np
import torch
from torch import nn

from crawl2cart.core.device import Device, open_device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, write_json
from crawl2cart.core.metrics import write_curve, write_metrics
from crawl2cart.core.progress import progress
from crawl2cart.core.stage import Stage, run
from crawl2cart.core.training_state import Checkpoint, open_checkpoint
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import MODELS, save_model
from crawl2cart.lm.inference.engine import generate
from crawl2cart.lm.models.embedding_init import spelling_embeddings
from crawl2cart.lm.models.init import initialise
from crawl2cart.lm.training.data import batch, carry_state, eval_batches, open_tokens
from crawl2cart.lm.training.distributed import (
    ProcessGroup,
    distribute,
    full_tensor,
    open_world,
    sync_on_last,
    wrap_distributed,
)
from crawl2cart.lm.training.flops import flops_per_token, peak_memory, product_rate
from crawl2cart.lm.training.losses import IGNORE, bits_per_byte
from crawl2cart.lm.training.optim import (
    adamw,
    learning_rate,
    load_optimizers,
    muon_and_adamw,
    optimizer_tensors,
)

# Tokens that go through the model at once: more fill no accelerator better, and this many fit one.
TOKENS_AT_ONCE = 65_536
PROMPTS = ("The kettle", "Before you buy a tent,", "I ordered the", "How to clean", "The harbour")
SAMPLE_TOKENS = 60


def split_rows(batch_tokens: int, context: int, rank: int, size: int) -> list[slice]:
    """This process's rows of a step, of `size` processes', in equal parts of at most TOKENS_AT_ONCE tokens.

    Raises UserError if rows do not fill a step, or the processes can not share them equally.
    """
    rows, rest = divmod(batch_tokens, context)
    if rest or rows == 0:
        raise UserError(
            f"batch_tokens ({batch_tokens:,}) must be a multiple of the {context:,} tokens of a row "
            "(pretrain.context, for recurrent models steps_back). Change one of them in the profile."
        )
    own, rest = divmod(rows, size)
    if rest:
        raise UserError(
            f"The {rows} rows of a step can not be shared equally by {size} processes. Start a number that divides "
            f"{rows}, or change batch_tokens in the profile."
        )
    parts = next(
        n
        for n in range(1, own + 1)
        if own % n == 0 and (n == own or own * context // n <= TOKENS_AT_ONCE)
    )
    return [
        slice(start, start + own // parts)
        for start in range(rank * own, (rank + 1) * own, own // parts)
    ]


@torch.no_grad()
def validation(
    model: nn.Module,
    tokens: np.ndarray,
    token_bytes: np.ndarray,
    rows: int,
    context: int,
    device: Device,
) -> float:
    """Bits per byte over the tokens, each a target once. A model without a carried state sees `context` tokens at most."""
    nats, state = 0.0, None
    model.eval()
    for inputs, targets in eval_batches(tokens, min(rows, len(tokens)), context):
        with device.autocast():
            loss, state = model.loss(inputs.to(device.kind), targets.to(device.kind), state)
        nats += loss.item() * int((targets != IGNORE).sum())
    model.train()
    return bits_per_byte(nats, int(token_bytes[tokens].sum()))


def samples(model: nn.Module, tokenizer, seed: int) -> list[dict[str, str]]:
    """How the model goes on from each of PROMPTS, up to the end of a document."""
    end = tokenizer.encode_single_token(tokenizers.END_OF_TEXT)
    written = generate(
        model,
        [[end, *tokenizer.encode_ordinary(prompt)] for prompt in PROMPTS],
        SAMPLE_TOKENS,
        [end],
        temperature=0.8,
        top_p=0.95,
        seed=seed,
    )
    return [
        {"prompt": prompt, "text": tokenizer.decode([number for number in ids if number != end])}
        for prompt, ids in zip(PROMPTS, written, strict=True)
    ]


def main(stage: Stage, name: str) -> None:
    profile = stage.params.profile
    device = open_device(
        profile.device, profile.dtype, profile.threads // profile.num_processes, stage.params.seed
    )
    with open_world(device.kind) as world:
        # One process holds the lock and writes; the others read the same checkpoint.
        with (
            open_checkpoint(stage)
            if world.is_main
            else contextlib.nullcontext(Checkpoint(stage)) as checkpoint
        ):
            train(stage, name, device, world, checkpoint)
            world.barrier()


def train(
    stage: Stage, name: str, device: Device, world: ProcessGroup, checkpoint: Checkpoint
) -> None:
    params, scale, own = (
        stage.params.pretrain.loop,
        stage.params.profile.pretrain,
        getattr(stage.params.pretrain, name),
    )
    seed = stage.params.seed
    # A model's own section of the parameters holds its learning rate and what else is no size (dropout, the routers' losses).
    config = getattr(stage.params.profile.models, name).model_dump() | own.model_dump(
        exclude={"learning_rate"}
    )
    tokenizer = tokenizers.load("data/tokenizer")
    token_bytes = tokenizers.token_bytes(tokenizer)
    tokens, val = open_tokens("data/tokens", "train"), open_tokens("data/tokens", "val")
    context = config.get("bptt_length", scale.context)
    rows = scale.batch_tokens // context
    parts = split_rows(scale.batch_tokens, context, world.rank, world.size)

    model = initialise(MODELS[name](config, tokenizer.n_vocab), seed)
    if name == "gpt_oss":
        model.embedding.data = spelling_embeddings(tokenizer, *model.embedding.shape, seed)
    model.to(device.kind)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    active = model.active_parameters() if name == "gpt_oss" else parameters
    flops = flops_per_token(model, context)
    if (
        scale.compile and name == "gpt_oss"
    ):  # a recurrent model is one scan, which is no sequence of small kernels
        for block in model.blocks:
            block.compile()
    loss_of = wrap_distributed(model, world, params.sharded)
    steady = params.weight_decay, params.adam_beta1, params.adam_beta2
    optimizers = (
        muon_and_adamw(model, *steady, world)
        if params.optimizer == "muon"
        else [adamw(model, *steady)]
    )
    assert sum(
        len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups
    ) == len(list(model.parameters())), "a parameter in no group or in two"

    start, curve, losses, states = 0, [], [], [None] * len(parts)
    if saved := checkpoint.load():
        tensors, state = saved
        start, curve = state["step"], state["curve"]
        for key, value in model.state_dict().items():
            value.copy_(distribute(tensors[f"model.{key}"], value))
        load_optimizers(tensors, *optimizers)
        if "state" in tensors:
            states = [tensors["state"][part].to(device.kind) for part in parts]
        print(f"{name}: going on at step {start}", flush=True)
        del saved, tensors, state  # as large as the model and its optimizer together
    world.barrier()  # all have read before the first may write
    started, first = time.monotonic(), start
    for step in progress(
        range(start, scale.max_steps), name, "step", total=scale.max_steps, first=start
    ):
        rate = learning_rate(
            step,
            scale.max_steps,
            own.learning_rate,
            params.warmup_ratio,
            params.min_lr_ratio,
            params.schedule,
        )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        torch.manual_seed(
            seed + 1_000_003 * step + world.rank
        )  # dropout, too, is a function of the step
        inputs, targets = batch(tokens, step, rows, context, seed)
        nats = torch.zeros((), device=device.kind)
        for number, part in enumerate(parts):
            x, y = inputs[part].to(device.kind), targets[part].to(device.kind)
            with sync_on_last(loss_of, last=number == len(parts) - 1):
                with device.autocast():
                    loss, states[number] = loss_of(x, y, carry_state(states[number], step, part))
                (loss / len(parts)).backward()
            nats += loss.detach() / len(parts)
        losses.append(world.mean(nats).item())
        if not np.isfinite(losses[-1]):
            raise UserError(
                f"The loss of step {step} is {losses[-1]} (seed {seed}, rows of data/tokens/train.bin as "
                f"crawl2cart.lm.training.data.batch(tokens, {step}, {rows}, {context}, {seed}) cuts them). Lower "
                f"pretrain.{name}.learning_rate."
            )
        nn.utils.clip_grad_norm_(model.parameters(), params.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        done = step + 1
        if done % scale.eval_interval == 0 or done == scale.max_steps:
            look = validation(model, val[: scale.eval_tokens], token_bytes, rows, context, device)
            curve.append(
                {
                    "step": done,
                    "loss": float(np.mean(losses)),
                    "val_bits_per_byte": look,
                    "learning_rate": rate,
                }
            )
            losses = []
            if world.is_main:
                print(
                    f"{name}: step {done:,} of {scale.max_steps:,}, loss {curve[-1]['loss']:.3f}, {look:.3f} bits per byte of "
                    "validation text",
                    flush=True,
                )
            tensors = {
                f"model.{key}": full_tensor(value) for key, value in model.state_dict().items()
            } | optimizer_tensors(*optimizers)
            if states[0] is not None:
                tensors["state"] = world.gather(torch.cat(states))
            if world.is_main:
                checkpoint.save(tensors, {"step": done, "curve": curve})

    seconds = time.monotonic() - started
    stage.log_cost(
        (scale.max_steps - first) * scale.batch_tokens,
        (scale.max_steps - first) * scale.batch_tokens * flops,
    )
    result = validation(model, val, token_bytes, rows, context, device)
    weights = {key: full_tensor(value) for key, value in model.state_dict().items()}
    if not world.is_main:
        return
    if start < scale.max_steps:
        speed = (scale.max_steps - first) * scale.batch_tokens / seconds
        peak = product_rate(device.kind, device.dtype) * world.size
        print(
            f"{name}: {seconds:,.0f} s, {speed:,.0f} tokens/s, {flops * speed / peak:.1%} of the rate of large matrix products "
            f"here ({peak / 1e12:,.2f} TFLOP/s in {device.dtype}), {peak_memory(device.kind):.2f} GiB at most",
            flush=True,
        )
    model = MODELS[name](config, tokenizer.n_vocab).to(
        device.kind
    )  # a plain one, where the other was split
    model.load_state_dict(weights)
    model.eval()
    with atomic_directory(f"models/pretrain/{name}") as folder:
        save_model(model, folder, tokenizer)
        write_json(folder / "samples.json", samples(model, tokenizer, seed))
    write_curve(f"metrics/pretrain/{name}.tsv", curve)
    write_metrics(
        f"metrics/pretrain/{name}.json",
        {
            name: {
                "val_bits_per_byte": result,
                "parameters": parameters,
                "active_parameters": active,
                "tokens": scale.max_steps * scale.batch_tokens,
            }
        },
    )


if __name__ == "__main__":
    run(main)
