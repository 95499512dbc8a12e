"""Read openai's own checkpoint of GPT-OSS: its names, its order of the parts, and experts in MXFP4.

Source of names and format: https://github.com/openai/gpt-oss, gpt_oss/torch/weights.py; OCP Microscaling Formats 1.0,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf, section 5.3.3.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json
from crawl2cart.lm.models.attention import FAST_TURNS, SLOW_TURNS, THETA
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.moe import LIMIT

# The 16 values of four bits, one of sign, two of exponent, one of mantissa (E2M1).
FP4 = torch.tensor(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
)
SCALE_BIAS = 127  # a block's scale is 2 to the power of its byte less this (E8M0)
WHOLE = {"embedding": "embedding.weight", "norm": "norm.scale", "head": "unembedding.weight"}
BLOCK = {
    "attention_norm": "attn.norm.scale",
    "sinks": "attn.sinks",
    "output": "attn.out.weight",
    "output_bias": "attn.out.bias",
    "expert_norm": "mlp.norm.scale",
    "router": "mlp.gate.weight",
    "router_bias": "mlp.gate.bias",
    "gate_up": "mlp.mlp1_weight",
    "gate_up_bias": "mlp.mlp1_bias",
    "down": "mlp.mlp2_weight",
    "down_bias": "mlp.mlp2_bias",
}


def mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks (…, n, 16) uint8, two values a byte, the low four bits first; scales (…, n) uint8 -> (…, n · 32) float32."""
    values = FP4[torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()]
    return torch.ldexp(values, scales.int()[..., None] - SCALE_BIAS).flatten(-2)


def foreign(config: Mapping) -> dict:
    """What of openai's config.json our model does not do, with the values that it has there; what is left out is as in gpt-oss."""
    expected = {
        "swiglu_limit": LIMIT,
        "rope_theta": THETA,
        "rope_ntk_alpha": SLOW_TURNS,
        "rope_ntk_beta": FAST_TURNS,
    }
    return {key: config[key] for key in expected if key in config and config[key] != expected[key]}


def our_config(config: Mapping) -> dict:
    """Our config from openai's config.json (https://huggingface.co/openai/gpt-oss-20b, original/config.json).

    Raises UserError on what our model has no place for.
    """
    if wrong := foreign(config):
        raise UserError(
            f"This GPT-OSS has {wrong}, which the model here does not do. Load it with openai's own code instead."
        )
    return {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "intermediate_size": config["intermediate_size"],
        "num_experts": config["num_experts"],
        "experts_per_token": config["experts_per_token"],
        "sliding_window": config["sliding_window"],
        "max_position_embeddings": round(
            config["initial_context_length"] * config["rope_scaling_factor"]
        ),
        "rope_factor": float(config["rope_scaling_factor"]),
        "router_aux_loss_coef": 0.0,
        "router_z_loss_coef": 0.0,
    }


def our_tensor(name: str, theirs: Mapping[str, Tensor], config: Mapping) -> Tensor:
    """One of our parameters, float32, from openai's. Their matrices are (out, in), their query, key and value one matrix."""

    def read(key: str) -> Tensor:
        if f"{key}.blocks" in theirs:
            return mxfp4(theirs[f"{key}.blocks"], theirs[f"{key}.scales"])
        return theirs[key].float()

    if name in WHOLE:
        return read(WHOLE[name])
    _, layer, word = name.split(".")
    if word in BLOCK:
        tensor = read(f"block.{layer}.{BLOCK[word]}")
        return tensor.mT.contiguous() if word in ("gate_up", "down") else tensor
    part, bias = re.fullmatch("(query|key|value)(_bias)?", word).groups()
    groups = config["num_kv_heads"] * config["head_dim"]
    parts = read(f"block.{layer}.attn.qkv.{'bias' if bias else 'weight'}").split(
        [config["num_heads"] * config["head_dim"], groups, groups]
    )
    return parts[("query", "key", "value").index(part)]


def load_openai(folder: Path | str) -> GptOss:
    """A GPT-OSS from a folder of openai's: config.json and *.safetensors. Raises UserError if a tensor is missing or misfits."""
    config = read_json(Path(folder) / "config.json")
    theirs = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            theirs |= {key: tensors.get_tensor(key) for key in tensors.keys()}
    model = GptOss(our_config(config), config["vocab_size"])
    try:
        for name, parameter in model.named_parameters():
            parameter.data = fitting(our_tensor(name, theirs, model.config), parameter.shape, name)
    except KeyError as error:
        raise UserError(
            f"{folder} has no tensor {error}: this is not openai's own checkpoint of a GPT-OSS, or not all of it."
        ) from error
    return model.eval()


def fitting(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The tensor, with zero rows up to the padded vocabulary where it is a table. Raises UserError if it has another shape."""
    if name in ("embedding", "head") and len(tensor) < shape[0]:
        tensor = torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), tensor.size(1))])
    if tensor.shape != shape:
        raise UserError(
            f"The checkpoint's {name} is {tuple(tensor.shape)}, but its config.json means {tuple(shape)}."
        )
    return tensor
