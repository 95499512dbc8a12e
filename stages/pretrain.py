"""Train one language model from scratch on the crawl: `python -m stages.pretrain gru`.

in   data/tokens/{train,val}.bin, data/tokenizer
out  models/pretrain/<name> (weights, config, tokenizer, samples.json),
     metrics/pretrain/<name>.json (result) and .tsv (curve)

A step has the same number of tokens for all five models. Recurrent models carry their state from
step to step: truncated backpropagation through time, Williams & Peng 1990,
https://doi.org/10.1162/neco.1990.2.4.490.
`torchrun --nproc_per_node=N -m stages.pretrain gpt_oss` gives the same curve; dropout draws differ.
"""

import contextlib
import time

import numpy as np
import torch
from tiktoken import Encoding
from torch import Tensor, nn
from torch.optim import Optimizer

from crawl2cart.core.device import Device, open_device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, write_json
from crawl2cart.core.metrics import write_curve, write_metrics
from crawl2cart.core.progress import progress
from crawl2cart.core.stage import Stage, run
from crawl2cart.core.training_state import Checkpoint, open_checkpoint
from crawl2cart.lm import tokenizer as tokenizers
from crawl2cart.lm.formats.save import MODELS, save_model
from crawl2cart.lm.inference.engine import Engine, seeded_draws
from crawl2cart.lm.models.embedding_init import spelling_embeddings
from crawl2cart.lm.models.init import initialise
from crawl2cart.lm.training.data import batch, carry_state, eval_batches, open_tokens
from crawl2cart.lm.training.distributed import (
    ProcessGroup,
    distribute,
    full_tensor,
    open_process_group,
    sync_on_last,
    wrap_distributed,
)
from crawl2cart.lm.training.flops import flops_per_token, peak_memory, product_rate
from crawl2cart.lm.training.losses import IGNORE, bits_per_byte
from crawl2cart.lm.training.optim import (
    adamw,
    check_covered,
    learning_rate,
    load_optimizers,
    muon_and_adamw,
    optimizer_tensors,
)

# Tokens that go through the model at once: more fill no accelerator better.
TOKENS_AT_ONCE = 65_536
PROMPTS = ("The kettle", "Before you buy a tent,", "I ordered the", "How to clean", "The harbour")
SAMPLE_TOKENS = 60


def split_rows(batch_tokens: int, context: int, rank: int, size: int) -> list[slice]:
    """Return this process's rows of a step, in equal parts of at most TOKENS_AT_ONCE tokens.

    size: number of processes. Raises UserError if rows do not fill a step, or if the processes can
    not share them equally.
    """
    rows, rest = divmod(batch_tokens, context)
    if rest or rows == 0:
        raise UserError(
            f"batch_tokens ({batch_tokens:,}) must be a multiple of the {context:,} tokens of a "
            "row (pretrain.context, or bptt_length of a recurrent model). Change one in the "
            "profile."
        )
    own, rest = divmod(rows, size)
    if rest:
        raise UserError(
            f"{size} processes can not share the {rows} rows of a step equally. Start a number "
            f"that divides {rows}, or change batch_tokens in the profile."
        )
    divisors = (n for n in range(1, own + 1) if own % n == 0)
    parts = next(n for n in divisors if n == own or own * context // n <= TOKENS_AT_ONCE)
    starts = range(rank * own, (rank + 1) * own, own // parts)
    return [slice(start, start + own // parts) for start in starts]


@torch.no_grad()
def validation(
    model: nn.Module,
    tokens: np.ndarray,
    token_bytes: np.ndarray,
    rows: int,
    context: int,
    device: Device,
) -> float:
    """Return bits per byte over the tokens, each a target once.

    A model without a carried state sees `context` tokens at most.
    """
    nats, state = 0.0, None
    model.eval()
    for inputs, targets in eval_batches(tokens, min(rows, len(tokens)), context):
        with device.autocast():
            loss, state = model.loss(inputs.to(device.kind), targets.to(device.kind), state)
        nats += loss.item() * int((targets != IGNORE).sum())
    model.train()
    return bits_per_byte(nats, int(token_bytes[tokens].sum()))


def samples(model: nn.Module, tokenizer: Encoding, seed: int) -> list[dict[str, str]]:
    """Return how the model continues each of PROMPTS, up to the end of a document."""
    end = tokenizer.encode_single_token(tokenizers.END_OF_TEXT)
    prompts = [[end, *tokenizer.encode_ordinary(prompt)] for prompt in PROMPTS]
    draws = seeded_draws(SAMPLE_TOKENS, len(prompts), seed)
    new_ids = Engine(model).generate(
        prompts, SAMPLE_TOKENS, [end], temperature=0.8, top_p=0.95, draws=draws
    )
    texts = [tokenizer.decode([number for number in ids if number != end]) for ids in new_ids]
    return [{"prompt": prompt, "text": text} for prompt, text in zip(PROMPTS, texts, strict=True)]


def restore(
    saved: tuple[dict[str, Tensor], dict],
    model: nn.Module,
    optimizers: list[Optimizer],
    parts: list[slice],
) -> tuple[int, list[dict], list[Tensor | None]]:
    """Put a checkpoint into model and optimizers; return its step, curve and recurrent states."""
    tensors, progress_so_far = saved
    for key, value in model.state_dict().items():
        value.copy_(distribute(tensors[f"model.{key}"], value))
    load_optimizers(tensors, *optimizers)
    states = [None] * len(parts)
    if "state" in tensors:
        states = [tensors["state"][part].to(model.head.device) for part in parts]
    return progress_so_far["step"], progress_so_far["curve"], states


def describe_speed(
    tokens: int, seconds: float, flops: float, device: Device, group: ProcessGroup
) -> str:
    """Return what training took, for the log. flops: of one token."""
    speed, peak = tokens / seconds, product_rate(device.kind, device.dtype) * group.size
    return (
        f"{seconds:,.0f} s, {speed:,.0f} tokens/s, {flops * speed / peak:.1%} of the rate of large "
        f"matrix products here ({peak / 1e12:,.2f} TFLOP/s in {device.dtype}), "
        f"{peak_memory(device.kind):.2f} GiB at most"
    )


def main(stage: Stage, name: str) -> None:
    profile = stage.params.profile
    threads = profile.threads // profile.num_processes
    device = open_device(profile.device, profile.dtype, threads, stage.params.seed)
    with open_process_group(device.kind) as group:
        # One process holds the lock and writes; the others read the same checkpoint.
        opened = open_checkpoint(stage)
        if not group.is_main:
            opened = contextlib.nullcontext(Checkpoint(stage))
        with opened as checkpoint:
            train(stage, name, device, group, checkpoint)
            group.barrier()


def train(
    stage: Stage, name: str, device: Device, group: ProcessGroup, checkpoint: Checkpoint
) -> None:
    params, scale = stage.params.pretrain.loop, stage.params.profile.pretrain
    own, seed, max_steps = getattr(stage.params.pretrain, name), stage.params.seed, scale.max_steps
    sizes = getattr(stage.params.profile.models, name).model_dump()
    config = sizes | own.model_dump(exclude={"learning_rate"})  # dropout, the routers' losses
    tokenizer = tokenizers.load("data/tokenizer")
    token_bytes = tokenizers.token_bytes(tokenizer)
    tokens, val = open_tokens("data/tokens", "train"), open_tokens("data/tokens", "val")
    context = config.get("bptt_length", scale.context)
    rows = scale.batch_tokens // context
    parts = split_rows(scale.batch_tokens, context, group.rank, group.size)

    model = initialise(MODELS[name](config, tokenizer.n_vocab), seed)
    if name == "gpt_oss":
        model.embedding.data = spelling_embeddings(tokenizer, *model.embedding.shape, seed)
    model.to(device.kind)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    active = model.active_parameters() if name == "gpt_oss" else parameters
    flops = flops_per_token(model, context)
    if scale.compile and name == "gpt_oss":  # recurrent models compile their scan themselves
        for block in model.blocks:
            block.compile()
    loss_of = wrap_distributed(model, group, params.sharded)
    steady = params.weight_decay, params.adam_beta1, params.adam_beta2
    is_muon = params.optimizer == "muon"
    optimizers = muon_and_adamw(model, *steady, group) if is_muon else [adamw(model, *steady)]
    check_covered(model, optimizers)

    start, curve, losses, states = 0, [], [], [None] * len(parts)
    if saved := checkpoint.load():
        start, curve, states = restore(saved, model, optimizers, parts)
        print(f"{name}: going on at step {start}", flush=True)
        del saved  # as large as the model and its optimizer together
    group.barrier()  # all have read before the first may write
    started = time.monotonic()
    for step in progress(range(start, max_steps), name, "step", total=max_steps, first=start):
        rate = learning_rate(
            step,
            max_steps,
            own.learning_rate,
            params.warmup_ratio,
            params.min_lr_ratio,
            params.schedule,
        )
        for options in (options for optimizer in optimizers for options in optimizer.param_groups):
            options["lr"] = rate
        torch.manual_seed(seed + 1_000_003 * step + group.rank)  # dropout is a function of the step
        inputs, targets = batch(tokens, step, rows, context, seed)
        nats = torch.zeros((), device=device.kind)
        for i, part in enumerate(parts):
            x, y = inputs[part].to(device.kind), targets[part].to(device.kind)
            with sync_on_last(loss_of, last=i == len(parts) - 1):
                with device.autocast():
                    loss, states[i] = loss_of(x, y, carry_state(states[i], step, part))
                (loss / len(parts)).backward()
            nats += loss.detach() / len(parts)
        losses.append(group.mean(nats).item())
        if not np.isfinite(losses[-1]):
            raise UserError(
                f"The loss of step {step} is {losses[-1]} (its rows: crawl2cart.lm.training.data."
                f"batch(tokens, {step}, {rows}, {context}, {seed}) of data/tokens/train.bin). "
                f"Lower pretrain.{name}.learning_rate."
            )
        nn.utils.clip_grad_norm_(model.parameters(), params.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        done = step + 1
        if done % scale.eval_interval == 0 or done == max_steps:
            bits = validation(model, val[: scale.eval_tokens], token_bytes, rows, context, device)
            point = {"step": done, "loss": float(np.mean(losses)), "val_bits_per_byte": bits}
            curve.append(point | {"learning_rate": rate})
            losses = []
            weights = {key: full_tensor(value) for key, value in model.state_dict().items()}
            tensors = {f"model.{key}": value for key, value in weights.items()}
            tensors |= optimizer_tensors(*optimizers)
            if states[0] is not None:
                tensors["state"] = group.gather(torch.cat(states))
            if group.is_main:
                print(
                    f"{name}: step {done:,} of {max_steps:,}, loss {point['loss']:.3f}, "
                    f"{bits:.3f} bits per byte of validation text",
                    flush=True,
                )
                checkpoint.save(tensors, {"step": done, "curve": curve})

    seconds, trained = time.monotonic() - started, (max_steps - start) * scale.batch_tokens
    stage.log_cost(trained, trained * flops)
    result = validation(model, val, token_bytes, rows, context, device)
    weights = {key: full_tensor(value) for key, value in model.state_dict().items()}
    if not group.is_main:
        return
    if trained:
        print(f"{name}: {describe_speed(trained, seconds, flops, device, group)}", flush=True)
    model = MODELS[name](config, tokenizer.n_vocab).to(device.kind)  # FSDP2 split the other one
    model.load_state_dict(weights)
    with atomic_directory(f"models/pretrain/{name}") as folder:
        save_model(model, folder, tokenizer)
        write_json(folder / "samples.json", samples(model, tokenizer, seed))
    metrics = {
        "val_bits_per_byte": result,
        "parameters": parameters,
        "active_parameters": active,
        "tokens": max_steps * scale.batch_tokens,
    }
    write_curve(f"metrics/pretrain/{name}.tsv", curve)
    write_metrics(f"metrics/pretrain/{name}.json", {name: metrics})


if __name__ == "__main__":
    run(main)
