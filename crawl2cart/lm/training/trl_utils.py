"""What SFT and DPO share: a base model for TRL, LoRA, learning curves, merged weights."""

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
USABLE = 0.9  # of a GPU's free memory; the rest is for kernels' own buffers
CALL_PATTERN = (
    r"to=functions\.(?P<name>[^\s<]+)(?:<\|channel\|>commentary)?"
    r"\s*(?:<\|constrain\|>)?\s*(?:json)?<\|message\|>"
)
# How a server of transformers reads our turns. Goes into tokenizer_config.json; without it
# `transformers serve` passes calls on as text. A recipient may stand on either side of the channel.
# Arguments that are no JSON stay text, for the client to see.
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
            "open_pattern": CALL_PATTERN,
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
    """Return model and tokenizer of a folder, or of the hub's model that its pointer.json names.

    Weights are float32 on a CPU (autocast casts for products) and the profile's dtype on a GPU.
    Raises UserError for a missing or damaged folder.
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
    # 20 billion weights in float32 fit no GPU.
    dtype = torch.float32 if device.kind == "cpu" else device.dtype
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.to(device.kind), AutoTokenizer.from_pretrained(folder)


def hub_tokenizer(folder: Path, pointer: dict[str, str]) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a pointer names, with the chat template beside the pointer."""
    tokenizer = AutoTokenizer.from_pretrained(pointer["hub_id"], revision=pointer["revision"])
    tokenizer.chat_template = (folder / TEMPLATE).read_text()
    return tokenizer


def row_bytes(config: PretrainedConfig, tokens: int) -> int:
    """Estimate the bytes that one row takes on a GPU in a training step, beside the weights.

    With gradient checkpointing: the input of every layer and, of one layer, the scores of eager
    attention (12 bytes each) and the experts' rows with their gradients (4 bytes a number).
    On gpt-oss-20b the estimate is 10 to 17 % above what was measured (metrics/speed/h200.json).
    """
    scores = 12 * config.num_attention_heads * tokens**2
    expert_row = 2 * config.hidden_size + 3 * config.intermediate_size
    experts = 4 * tokens * config.num_experts_per_tok * expert_row
    return scores + experts + 2 * tokens * config.num_hidden_layers * config.hidden_size


def division(
    batch: int, rows_an_entry: int, max_length: int, config: PretrainedConfig, device: Device
) -> dict[str, int]:
    """Return a Trainer's arguments that share a batch by processes and by a GPU's free memory.

    The gradient is that of the whole batch all the same. rows_an_entry: 2 for pairs. max_length: in
    tokens. Raises UserError if the processes can not share the batch equally.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    own, rest = divmod(batch, processes)
    if rest or not own:
        raise UserError(
            f"The batch of {batch} can not be shared equally by {processes} processes. "
            "Start a number that divides it, or change batch_size in the profile."
        )
    if device.kind == "cpu":
        return {
            "per_device_train_batch_size": own,
            "per_device_eval_batch_size": batch,
            "gradient_accumulation_steps": 1,
        }
    free = torch.cuda.mem_get_info()[0] * USABLE
    fitting = free // (rows_an_entry * row_bytes(config, max_length))
    at_once = max(n for n in range(1, own + 1) if own % n == 0 and n <= max(1, fitting))
    return {
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": own // at_once,
    }


def lora(rank: int, alpha: int) -> LoraConfig:
    """Return LoRA on q, k, v, o of every layer and both matrices of every expert, not the router.

    `all-linear` reaches only the attention: experts are bare parameters, which need naming and take
    no dropout.
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
    """Assert that exactly the adapters of q, k, v, o and of the experts train."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names, "nothing trains"
    assert all("lora_" in name for name in names), f"more than adapters trains: {sorted(names)[:3]}"
    for part in ("q_proj", "k_proj", "v_proj", "o_proj", "mlp.experts"):
        assert any(part in name for name in names), f"{part} has no adapter"


def json_dataset(rows: list[dict]) -> Dataset:
    """Return rows of message lists as a data set whose messages stay as they are.

    Plain Arrow would silently give every call the union of all arguments, most of them null.
    """
    columns = {name: List(Json()) for name in rows[0]}
    return Dataset.from_list(rows, features=Features(columns))


def check_lengths(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, keys: tuple[str, ...], max_length: int
) -> None:
    """Raise UserError if a row has more than max_length tokens.

    A cut row would lose its end, which is what is learnt. keys: columns that continue the prompt.
    """
    for number, row in enumerate(rows):
        for key in keys:
            messages = row["prompt"] + row[key]
            tokens = tokenizer.apply_chat_template(messages, tools=row["tools"], return_dict=False)
            if len(tokens) > max_length:
                raise UserError(
                    f"Row {number} has {len(tokens)} tokens with its {key}, where max_length is "
                    f"{max_length}. Raise max_length in the profile, or shorten the dialogues."
                )


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint that a Trainer left in `folder`, None if there is none.

    trainer_state.json is what it writes last.
    """
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            complete.append((state["global_step"], checkpoint))
        except (OSError, json.JSONDecodeError, KeyError):
            continue
    return str(max(complete)[1]) if complete else None


def curve(log_history: list[dict], columns: dict[str, str]) -> list[dict]:
    """Return `step` and the named columns of a Trainer's log. columns: log key -> column."""
    return [
        {"step": entry["step"], **{name: float(entry[key]) for key, name in columns.items()}}
        for entry in log_history
        if all(key in entry for key in columns)
    ]


def trained(trainer: Trainer, flops_a_weight: int) -> tuple[int, float]:
    """Return the tokens that a Trainer went through in all processes, and the operations for them.

    flops_a_weight: operations for each weight that multiplies a token: 2 forward, and 2 for the
    gradient that passes through a frozen weight. Recomputation by gradient checkpointing does not
    count.
    """
    counts = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    tokens = counts[-1] if counts else 0
    config = trainer.model.config
    share = config.num_experts_per_tok / config.num_local_experts
    weights = sum(
        parameter.numel() * (share if "experts" in name else 1)
        for name, parameter in trainer.model.named_parameters()
        if "lora_" not in name and "embed_tokens" not in name
    )
    return int(tokens), flops_a_weight * weights * tokens


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter alone, with its module names sorted: PEFT keeps them in a set."""
    model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    config = read_json(path)
    write_json(path, config | {"target_modules": sorted(config["target_modules"])})


def save_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a merged model that AutoModelForCausalLM and `transformers serve` load as it is.

    A trainer with a router loss sets output_router_logits, with which batched `generate` crashes.
    """
    assert not model.config.output_router_logits, "the saved config must not ask for router logits"
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.response_template = RESPONSE
    tokenizer.save_pretrained(folder)
