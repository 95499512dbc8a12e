"""Train one language model from scratch on the crawl: `python -m stages.pretrain gru`.

in   data/tokens/{train,val}.bin, data/tokenizer
out  models/pretrain/<name> (weights, config, tokenizer, samples.json), metrics/pretrain/<name>.json (result) and .tsv (curve)

AdamW with warmup and a cosine, a fixed number of tokens a step, the same for all five models; recurrent ones carry their
state from step to step (truncated backpropagation through time, Williams & Peng 1990,
https://doi.org/10.1162/neco.1990.2.4.490).
"""

import time

import numpy as np
import torch
from torch import nn

from stages.common.checkpoint import open_checkpoint
from stages.common.device import Device, open_device
from stages.common.files import atomic_directory, write_json
from stages.common.metrics import write_curve, write_metrics
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.stage import Stage, run
from stages.nn import tokenizer as tokenizers
from stages.nn.data import batch, every_token_once, open_tokens
from stages.nn.export import MODELS, save_model
from stages.nn.generate import generate
from stages.nn.initial import initialise
from stages.nn.losses import IGNORE, bits_per_byte
from stages.nn.optim import adamw, learning_rate, load_optimizer, optimizer_tensors

# Rows of a step that go through the model at once: more tokens fill no accelerator better, and this many fit one.
TOKENS_AT_ONCE = 65_536
PROMPTS = ("The kettle", "Before you buy a tent,", "I ordered the", "How to clean", "The harbour")
SAMPLE_TOKENS = 60


def split_rows(tokens_per_step: int, context: int) -> list[slice]:
    """The rows of a step in equal parts of at most TOKENS_AT_ONCE tokens. Raises Problem if rows do not fill a step."""
    rows, rest = divmod(tokens_per_step, context)
    if rest or rows == 0:
        raise Problem(f"tokens_per_step ({tokens_per_step:,}) must be a multiple of the {context:,} tokens of a row "
                      "(pretrain.context, for recurrent models steps_back). Change one of them in the profile.")
    parts = next(n for n in range(1, rows + 1) if rows % n == 0 and (n == rows or tokens_per_step // n <= TOKENS_AT_ONCE))
    return [slice(start, start + rows // parts) for start in range(0, rows, rows // parts)]


@torch.no_grad()
def validation(model: nn.Module, tokens: np.ndarray, token_bytes: np.ndarray, rows: int, context: int, device: Device) -> float:
    """Bits per byte over the tokens, each a target once. A model without a carried state sees `context` tokens at most."""
    nats, state = 0.0, None
    for inputs, targets in every_token_once(tokens, min(rows, len(tokens)), context):
        with device.autocast():
            loss, state = model.loss(inputs.to(device.kind), targets.to(device.kind), state)
        nats += loss.item() * int((targets != IGNORE).sum())
    return bits_per_byte(nats, int(token_bytes[tokens].sum()))


def samples(model: nn.Module, tokenizer, seed: int) -> list[dict[str, str]]:
    """How the model goes on from each of PROMPTS, up to the end of a document."""
    end = tokenizer.encode_single_token(tokenizers.END_OF_TEXT)
    written = generate(model, [[end, *tokenizer.encode_ordinary(prompt)] for prompt in PROMPTS], SAMPLE_TOKENS, [end],
                       temperature=0.8, top_p=0.95, seed=seed)
    return [{"prompt": prompt, "text": tokenizer.decode([number for number in ids if number != end])}
            for prompt, ids in zip(PROMPTS, written, strict=True)]


def main(stage: Stage, name: str) -> None:
    params, scale = stage.params.pretrain.loop, stage.params.profile.pretrain
    peak, seed = getattr(stage.params.pretrain, name), stage.params.seed
    config = getattr(stage.params.profile.models, name).model_dump()
    if name == "gpt_oss":
        config["balance"] = peak.balance
    device = open_device(stage.params.profile.device, stage.params.profile.dtype, stage.params.profile.threads, seed)
    tokenizer = tokenizers.load("data/tokenizer")
    token_bytes = tokenizers.token_bytes(tokenizer)
    train, val = open_tokens("data/tokens", "train"), open_tokens("data/tokens", "val")
    model = initialise(MODELS[name](config, tokenizer.n_vocab), seed).to(device.kind)
    optimizer = adamw(model, params.weight_decay, params.adam_beta1, params.adam_beta2)
    context = config.get("steps_back", scale.context)
    parts = split_rows(scale.tokens_per_step, context)
    rows = parts[-1].stop

    with open_checkpoint(stage) as checkpoint:
        start, curve, losses, states = 0, [], [], [None] * len(parts)
        if saved := checkpoint.load():
            tensors, state = saved
            start, curve = state["step"], state["curve"]
            model.load_state_dict({key: tensors[f"model.{key}"] for key in model.state_dict()})
            load_optimizer(optimizer, tensors)
            states = [tensors[f"state.{number}"].to(device.kind) if f"state.{number}" in tensors else None
                      for number in range(len(parts))]
            print(f"{name}: going on at step {start}", flush=True)
        started, first = time.monotonic(), start
        for step in progress(range(start, scale.steps), name, "step", total=scale.steps, first=start):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, scale.steps, peak.learning_rate, params.warmup_share, params.final_share)
            inputs, targets = batch(train, step, rows, context, seed)
            nats = 0.0
            for number, part in enumerate(parts):
                x, y = inputs[part].to(device.kind), targets[part].to(device.kind)
                with device.autocast():
                    loss, states[number] = model.loss(x, y, states[number])
                (loss / len(parts)).backward()
                nats += loss.item() / len(parts)
            if not np.isfinite(nats):
                raise Problem(f"The loss of step {step} is {nats} (seed {seed}, rows of data/tokens/train.bin as "
                              f"stages.nn.data.batch(tokens, {step}, {rows}, {context}, {seed}) cuts them). Lower "
                              f"pretrain.{name}.learning_rate.")
            nn.utils.clip_grad_norm_(model.parameters(), params.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(nats)

            done = step + 1
            if done % scale.steps_per_look == 0 or done == scale.steps:
                look = validation(model, val[:scale.look_tokens], token_bytes, rows, context, device)
                curve.append({"step": done, "loss": float(np.mean(losses)), "val_bits_per_byte": look,
                              "learning_rate": optimizer.param_groups[0]["lr"]})
                losses = []
                rate = (done - first) * scale.tokens_per_step / (time.monotonic() - started)
                print(f"{name}: step {done:,} of {scale.steps:,}, loss {curve[-1]['loss']:.3f}, {look:.3f} bits per byte of "
                      f"validation text, {rate:,.0f} tokens/s", flush=True)
                tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
                tensors |= {f"state.{number}": state for number, state in enumerate(states) if state is not None}
                checkpoint.save(tensors | optimizer_tensors(optimizer), {"step": done, "curve": curve})

        whole = validation(model, val, token_bytes, rows, context, device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        active = model.active_parameters() if name == "gpt_oss" else parameters
        with atomic_directory(f"models/pretrain/{name}") as folder:
            save_model(model, folder, tokenizer)
            write_json(folder / "samples.json", samples(model, tokenizer, seed))
        write_curve(f"metrics/pretrain/{name}.tsv", curve)
        write_metrics(f"metrics/pretrain/{name}.json", {name: {
            "val_bits_per_byte": whole, "parameters": parameters, "active_parameters": active,
            "tokens": scale.steps * scale.tokens_per_step}})


if __name__ == "__main__":
    run(main)
