"""What SFT and DPO share: opening a base model for TRL, LoRA on attention and experts, learning curves, merged weights."""

import json
from pathlib import Path

import torch
from datasets import Dataset, Features, Json, List
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config, PreTrainedModel, PreTrainedTokenizerBase

from stages.common.device import Device
from stages.common.files import read_json, write_json
from stages.common.models import check_model
from stages.common.problem import Problem
from stages.shop import harmony

POINTER = "pointer.json"
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
KEPT_CHECKPOINTS = 2
# How a server of transformers reads a turn that our template wrote: goes into tokenizer_config.json, without which `transformers
# serve` passes calls on as text. A recipient may stand on either side of the channel; what is no JSON stays text, for the client to see.
RESPONSE = {
    "defaults": {"role": "assistant"}, "start_anchor": harmony.START,
    "fields": {
        "reasoning_content": {"open": "<|channel|>analysis<|message|>", "close": list(harmony.STOPS), "content": "text"},
        "content": {"open": "<|channel|>final<|message|>", "close": list(harmony.STOPS), "content": "text"},
        "tool_calls": {
            "open_pattern": r"to=functions\.(?P<name>[^\s<]+)(?:<\|channel\|>commentary)?\s*(?:<\|constrain\|>)?\s*(?:json)?<\|message\|>",
            "close": list(harmony.STOPS), "repeats": True, "content": "json", "content_args": {"allow_non_json": True},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}}}}


def open_model(folder: Path | str, device: Device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint folder, or of the hub model that its pointer.json names.

    Weights are float32 on a CPU (matrix products run under autocast) and the profile's dtype on a card. Raises Problem
    for a missing or damaged folder.
    """
    folder = Path(folder)
    if (folder / POINTER).is_file():
        pointer = read_json(folder / POINTER)
        model = AutoModelForCausalLM.from_pretrained(
            pointer["hub_id"], revision=pointer["revision"], dtype=device.dtype, device_map={"": 0},
            quantization_config=Mxfp4Config(dequantize=True), attn_implementation="eager", use_cache=False)
        tokenizer = AutoTokenizer.from_pretrained(pointer["hub_id"], revision=pointer["revision"])
        tokenizer.chat_template = harmony.TEMPLATE   # the hub's own puts today's date into every prompt
        return model, tokenizer
    check_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.to(device.kind), AutoTokenizer.from_pretrained(folder)


def lora(rank: int, alpha: int) -> LoraConfig:
    """LoRA on q, k, v, o of every layer and on both matrices of every expert; the router stays as it is.

    `all-linear` reaches the attention only: experts are bare parameters and need naming, without dropout.
    """
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear",
                      target_parameters=list(EXPERTS), task_type="CAUSAL_LM")


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


def check_lengths(rows: list[dict], tokenizer: PreTrainedTokenizerBase, keys: tuple[str, ...], max_length: int) -> None:
    """Raises Problem if a row has more than max_length tokens: a cut row loses its end, which is what is learnt."""
    for number, row in enumerate(rows):
        for key in keys:
            tokens = tokenizer.apply_chat_template(row["prompt"] + row[key], tools=row["tools"], return_dict=False)
            if len(tokens) > max_length:
                raise Problem(f"Row {number} has {len(tokens)} tokens with its {key}, max_length is {max_length}. "
                              "Raise max_length in the profile, or shorten the dialogues.")


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint that a Trainer left in `folder`: trainer_state.json is what it writes last."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            whole.append((json.loads((checkpoint / "trainer_state.json").read_text())["global_step"], checkpoint))
        except (OSError, json.JSONDecodeError, KeyError):
            continue
    return str(max(whole)[1]) if whole else None


def curve(log_history: list[dict], columns: dict[str, str]) -> list[dict]:
    """Rows `step` plus the named columns from a Trainer's log, without its timings. columns: log key -> column."""
    rows = []
    for entry in log_history:
        if all(key in entry for key in columns):
            rows.append({"step": entry["step"]} | {column: float(entry[key]) for key, column in columns.items()})
    return rows


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the adapter alone. PEFT keeps the names of its modules in a set, whose order differs from run to run."""
    model.save_pretrained(folder)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"target_modules": sorted(config["target_modules"])})


def save_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a merged model that AutoModelForCausalLM and `transformers serve` load as it is.

    output_router_logits would be saved as true by a trainer with a router loss, and batched `generate` then crashes.
    """
    assert not model.config.output_router_logits, "the saved config must not ask for router logits"
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.response_template = RESPONSE
    tokenizer.save_pretrained(folder)
