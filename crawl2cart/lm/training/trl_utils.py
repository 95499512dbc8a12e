"""What SFT and DPO share: opening a base model for TRL, LoRA on attention and experts, learning curves, merged weights."""

import json
import os
from pathlib import Path

import torch
from datasets import Dataset, Features, Json, List
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Mxfp4Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from crawl2cart.core.device import Device
from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json, write_json
from crawl2cart.core.model_folder import check_model
from crawl2cart.lm.formats import harmony

POINTER, TEMPLATE = "pointer.json", "chat_template.jinja"
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
KEPT_CHECKPOINTS = 2
USABLE = 0.9  # of a card's free memory; the rest is for what kernels need in passing
# How a server of transformers reads a turn that our template wrote: goes into tokenizer_config.json, without which `transformers
# serve` passes calls on as text. A recipient may stand on either side of the channel; what is no JSON stays text, for the client to see.
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": harmony.START,
    "fields": {
        "reasoning_content": {
            "open": "<|channel|>analysis<|message|>",
            "close": list(harmony.STOPS),
            "content": "text",
        },
        "content": {
            "open": "<|channel|>final<|message|>",
            "close": list(harmony.STOPS),
            "content": "text",
        },
        "tool_calls": {
            "open_pattern": r"to=functions\.(?P<name>[^\s<]+)(?:<\|channel\|>commentary)?\s*(?:<\|constrain\|>)?\s*(?:json)?<\|message\|>",
            "close": list(harmony.STOPS),
            "repeats": True,
            "content": "json",
            "content_args": {"allow_non_json": True},
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
    },
}


def open_model(
    folder: Path | str, device: Device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint folder, or of the hub model that its pointer.json names.

    Weights are float32 on a CPU (matrix products run under autocast) and the profile's dtype on a card. Raises UserError
    for a missing or damaged folder.
    """
    folder = Path(folder)
    if (folder / POINTER).is_file():
        pointer = read_json(folder / POINTER)
        model = AutoModelForCausalLM.from_pretrained(
            pointer["hub_id"],
            revision=pointer["revision"],
            dtype=device.dtype,
            device_map={"": torch.cuda.current_device()},
            quantization_config=Mxfp4Config(dequantize=True),
            attn_implementation="eager",
            use_cache=False,
        )
        return model, hub_tokenizer(folder, pointer)
    check_model(folder)
    dtype = (
        torch.float32 if device.kind == "cpu" else device.dtype
    )  # 20 billion weights in float32 fit no card
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.to(device.kind), AutoTokenizer.from_pretrained(folder)


def hub_tokenizer(folder: Path, pointer: dict[str, str]) -> PreTrainedTokenizerBase:
    """The tokenizer of the hub model that a pointer names, with the chat template that lies beside the pointer."""
    tokenizer = AutoTokenizer.from_pretrained(pointer["hub_id"], revision=pointer["revision"])
    tokenizer.chat_template = (folder / TEMPLATE).read_text()
    return tokenizer


def row_bytes(config: PretrainedConfig, tokens: int) -> int:
    """What one row takes on a card in a training step with gradient checkpointing, beside the weights: the input of every
    layer and, of one layer, the scores of eager attention and the rows of the experts with their gradients.

    An estimate from shapes: 12 bytes a score, 4 for a number of an expert's rows. With the weights and adapters of gpt-oss-20b it gives
    55 GiB for SFT of a row of 4,096 tokens, where 50.1 were measured, and 69 for a pair of DPO, where 58.8 were (metrics/speed/h200.json).
    """
    scores = 12 * config.num_attention_heads * tokens**2
    experts = (
        4
        * tokens
        * config.num_experts_per_tok
        * (2 * config.hidden_size + 3 * config.intermediate_size)
    )
    return scores + experts + 2 * tokens * config.num_hidden_layers * config.hidden_size


def division(
    batch: int, rows_an_entry: int, max_length: int, config: PretrainedConfig, device: Device
) -> dict[str, int]:
    """How a step's batch is shared by processes and, on a card, taken in parts that fit its free memory: the arguments of a
    Trainer for it. The gradient is that of the whole batch all the same.

    rows_an_entry: 2 for pairs. Raises UserError if the processes can not share the batch equally.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    own, rest = divmod(batch, processes)
    if rest or not own:
        raise UserError(
            f"The batch of {batch} can not be shared equally by {processes} processes. Start a number that divides it, "
            "or change batch in the profile."
        )
    if device.kind == "cpu":
        return {
            "per_device_train_batch_size": own,
            "per_device_eval_batch_size": batch,
            "gradient_accumulation_steps": 1,
        }
    fitting = (
        torch.cuda.mem_get_info()[0] * USABLE // (rows_an_entry * row_bytes(config, max_length))
    )
    at_once = max(n for n in range(1, own + 1) if own % n == 0 and n <= max(1, fitting))
    return {
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": own // at_once,
    }


def lora(rank: int, alpha: int) -> LoraConfig:
    """LoRA on q, k, v, o of every layer and on both matrices of every expert; the router stays as it is.

    `all-linear` reaches the attention only: experts are bare parameters and need naming, without dropout.
    """
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        target_parameters=list(EXPERTS),
        task_type="CAUSAL_LM",
    )


def check_trainable(model: torch.nn.Module) -> None:
    """Raises AssertionError unless exactly the adapters of q, k, v, o and of both expert matrices train in each layer."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names, "nothing trains"
    assert all("lora_" in name for name in names), f"more than adapters trains: {sorted(names)[:3]}"
    for part in ("q_proj", "k_proj", "v_proj", "o_proj", "mlp.experts"):
        assert any(part in name for name in names), f"{part} has no adapter"


def json_dataset(rows: list[dict]) -> Dataset:
    """Rows of message lists as a data set whose messages stay as they are.

    Plain Arrow would give every call the union of all arguments, `"order": null` among them, without a word.
    """
    columns = {name: List(Json()) for name in rows[0]}
    return Dataset.from_list(rows, features=Features(columns))


def check_lengths(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, keys: tuple[str, ...], max_length: int
) -> None:
    """Raises UserError if a row has more than max_length tokens: a cut row loses its end, which is what is learnt."""
    for number, row in enumerate(rows):
        for key in keys:
            tokens = tokenizer.apply_chat_template(
                row["prompt"] + row[key], tools=row["tools"], return_dict=False
            )
            if len(tokens) > max_length:
                raise UserError(
                    f"Row {number} has {len(tokens)} tokens with its {key}, max_length is {max_length}. "
                    "Raise max_length in the profile, or shorten the dialogues."
                )


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint that a Trainer left in `folder`: trainer_state.json is what it writes last."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            whole.append(
                (
                    json.loads((checkpoint / "trainer_state.json").read_text())["global_step"],
                    checkpoint,
                )
            )
        except (OSError, json.JSONDecodeError, KeyError):
            continue
    return str(max(whole)[1]) if whole else None


def curve(log_history: list[dict], columns: dict[str, str]) -> list[dict]:
    """Rows `step` plus the named columns from a Trainer's log, without its timings. columns: log key -> column."""
    rows = []
    for entry in log_history:
        if all(key in entry for key in columns):
            rows.append(
                {"step": entry["step"]}
                | {column: float(entry[key]) for key, column in columns.items()}
            )
    return rows


def trained(trainer: Trainer, flops_a_weight: int) -> tuple[int, float]:
    """Tokens that a Trainer went through, all processes together, and floating-point operations for them.

    flops_a_weight: of each weight that multiplies a token: 2 forward, 2 for the gradient that passes through a frozen
    weight. What gradient checkpointing computes again is not counted.
    """
    tokens = next(
        (
            entry["num_tokens"]
            for entry in reversed(trainer.state.log_history)
            if "num_tokens" in entry
        ),
        0,
    )
    config = trainer.model.config
    share = config.num_experts_per_tok / config.num_local_experts
    weights = sum(
        parameter.numel() * (share if "experts" in name else 1)
        for name, parameter in trainer.model.named_parameters()
        if "lora_" not in name and "embed_tokens" not in name
    )
    return int(tokens), flops_a_weight * weights * tokens


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the adapter alone. PEFT keeps the names of its modules in a set, whose order differs from run to run."""
    model.save_pretrained(folder)
    config = read_json(folder / "adapter_config.json")
    write_json(
        folder / "adapter_config.json",
        config | {"target_modules": sorted(config["target_modules"])},
    )


def save_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a merged model that AutoModelForCausalLM and `transformers serve` load as it is.

    output_router_logits would be saved as true by a trainer with a router loss, and batched `generate` then crashes.
    """
    assert not model.config.output_router_logits, "the saved config must not ask for router logits"
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.response_template = RESPONSE
    tokenizer.save_pretrained(folder)
