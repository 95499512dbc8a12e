"""Read openai's own checkpoint of GPT-OSS: its names, its order of the parts, experts in MXFP4.

Names and format: https://github.com/openai/gpt-oss, gpt_oss/torch/weights.py; OCP Microscaling
Formats 1.0, section 5.3.3,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_json
from crawl2cart.lm.models.gpt_oss import DEFAULTS, GptOss

# The 16 values of four bits: one of sign, two of exponent, one of mantissa (E2M1).
POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 = torch.tensor(POSITIVE + [-value for value in POSITIVE])
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
    """Unpack blocks (…, n, 16) uint8 with scales (…, n) uint8 into (…, n · 32) float32.

    A byte holds two values, the first in its low four bits.
    """
    values = FP4[torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()]
    return torch.ldexp(values, scales.int()[..., None] - SCALE_BIAS).flatten(-2)


def our_config(config: Mapping) -> dict:
    """Return our config for openai's config.json. What that leaves out is as in gpt-oss-20b.

    https://huggingface.co/openai/gpt-oss-20b, original/config.json
    """
    factor = float(config["rope_scaling_factor"])
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
        "max_position_embeddings": round(config["initial_context_length"] * factor),
        "rope_factor": factor,
        "rope_theta": float(config.get("rope_theta", DEFAULTS["rope_theta"])),
        "rope_beta_fast": float(config.get("rope_ntk_beta", DEFAULTS["rope_beta_fast"])),
        "rope_beta_slow": float(config.get("rope_ntk_alpha", DEFAULTS["rope_beta_slow"])),
        "swiglu_limit": config.get("swiglu_limit", DEFAULTS["swiglu_limit"]),
        "router_aux_loss_coef": 0.0,
        "router_z_loss_coef": 0.0,
    }


def our_tensor(name: str, theirs: Mapping[str, Tensor], config: Mapping) -> Tensor:
    """Return one of our parameters, float32, from openai's tensors.

    Their matrices are (out, in), and their queries, keys and values one matrix.
    """

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
    queries = config["num_heads"] * config["head_dim"]
    keys = config["num_kv_heads"] * config["head_dim"]
    qkv = read(f"block.{layer}.attn.qkv.{'bias' if bias else 'weight'}")
    return qkv.split([queries, keys, keys])[("query", "key", "value").index(part)]


def load_openai(folder: Path | str) -> GptOss:
    """Return a GPT-OSS from a folder of openai's: config.json and *.safetensors.

    Raises UserError if a tensor is missing or has another shape.
    """
    config = read_json(Path(folder) / "config.json")
    theirs = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            theirs |= {key: tensors.get_tensor(key) for key in tensors.keys()}
    model = GptOss(our_config(config), config["vocab_size"])
    try:
        for name, parameter in model.named_parameters():
            tensor = our_tensor(name, theirs, model.config)
            parameter.data = padded(tensor, parameter.shape, name)
    except KeyError as error:
        raise UserError(
            f"{folder} has no tensor {error}: it is not a complete checkpoint of openai's GPT-OSS. "
            "Download it again."
        ) from error
    return model.eval()


def padded(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    """Return the tensor, a table with zero rows up to the padded vocabulary.

    Raises UserError if it has another shape.
    """
    if name in ("embedding", "head") and len(tensor) < shape[0]:
        tensor = torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), tensor.size(1))])
    if tensor.shape != shape:
        raise UserError(
            f"The checkpoint's {name} is {tuple(tensor.shape)}, where its config.json needs "
            f"{tuple(shape)}."
        )
    return tensor
