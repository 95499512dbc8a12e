"""Read transformers' GptOssForCausalLM into our GPT-OSS: the same tensors under other names."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from crawl2cart.core.errors import UserError
from crawl2cart.core.model_folder import WEIGHTS, check_model
from crawl2cart.lm.formats.from_openai import mxfp4
from crawl2cart.lm.models.gpt_oss import DEFAULTS, GptOss

# Our name -> Hugging Face's, of the whole model and of one block.
WHOLE = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
BLOCK = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "query_bias": "self_attn.q_proj.bias",
    "key": "self_attn.k_proj.weight",
    "key_bias": "self_attn.k_proj.bias",
    "value": "self_attn.v_proj.weight",
    "value_bias": "self_attn.v_proj.bias",
    "output": "self_attn.o_proj.weight",
    "output_bias": "self_attn.o_proj.bias",
    "sinks": "self_attn.sinks",
    "expert_norm": "post_attention_layernorm.weight",
    "router": "mlp.router.weight",
    "router_bias": "mlp.router.bias",
    "gate_up": "mlp.experts.gate_up_proj",
    "gate_up_bias": "mlp.experts.gate_up_proj_bias",
    "down": "mlp.experts.down_proj",
    "down_bias": "mlp.experts.down_proj_bias",
}


def exported_name(name: str) -> str:
    """`blocks.3.query` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in WHOLE:
        return WHOLE[name]
    _, layer, word = name.split(".")
    return f"model.layers.{layer}.{BLOCK[word]}"


def rope_parameters(config: dict) -> dict:
    """Return the rotary parameters under the names of transformers 5.

    Before, and in openai's own files on the hub, they stand in rope_scaling and rope_theta.
    """
    old = {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta")}
    return config.get("rope_parameters") or old


def unsupported(config: dict) -> dict:
    """Return the entries of a GptOssForCausalLM's config that our model has no place for."""
    layers = range(config["num_hidden_layers"])
    expected = {
        "tie_word_embeddings": False,
        "attention_bias": True,
        "rope_type": "yarn",
        "truncate": False,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in layers],
    }
    values = {**config, **rope_parameters(config)}
    return {key: values.get(key) for key in expected if values.get(key) != expected[key]}


def imported_config(config: dict) -> dict:
    """Return our config for a GptOssForCausalLM's. Raises UserError on what ours can not do."""
    if wrong := unsupported(config):
        raise UserError(
            f"This GPT-OSS has {wrong}, which our model does not support. "
            "Load it with transformers instead."
        )
    rope = rope_parameters(config)
    return {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "intermediate_size": config["intermediate_size"],
        "num_experts": config["num_local_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "sliding_window": config["sliding_window"],
        "max_position_embeddings": config["max_position_embeddings"],
        "rope_factor": rope["factor"],
        "rope_theta": rope["rope_theta"],
        "rope_beta_fast": rope.get("beta_fast", DEFAULTS["rope_beta_fast"]),
        "rope_beta_slow": rope.get("beta_slow", DEFAULTS["rope_beta_slow"]),
        "swiglu_alpha": config.get("swiglu_alpha", DEFAULTS["swiglu_alpha"]),
        "swiglu_limit": config["swiglu_limit"],
        "rms_norm_eps": config["rms_norm_eps"],
        "router_aux_loss_coef": config["router_aux_loss_coef"],
        # transformers has no z-loss. We keep ours in its config, where it is ignored.
        "router_z_loss_coef": config.get("router_z_loss_coef", 0.0),
    }


def load_gpt_oss(folder: Path | str, device: str = "cpu") -> GptOss:
    """Return a GPT-OSS from a GptOssForCausalLM folder, in float32.

    Raises UserError if files are missing or damaged, and on another model.
    """
    config = check_model(folder)
    if config.get("model_type") != "gpt_oss":
        kind = config.get("model", config.get("model_type"))
        raise UserError(f"{folder} holds a model of type {kind}, where a GPT-OSS is needed.")
    model = GptOss(imported_config(config), used_ids(folder))
    tensors = read_weights(folder)
    ours = {name: tensors.pop(exported_name(name)) for name in model.state_dict()}
    load_weights(model, ours | tensors, folder)
    return model.to(device).eval()


def imported(model: nn.Module, vocabulary: int) -> GptOss:
    """Return a copy of a GptOssForCausalLM, in float32. vocabulary: how many ids are in use."""
    own = GptOss(imported_config(model.config.to_dict()), vocabulary)
    tensors = model.state_dict()
    own.load_state_dict({name: tensors[exported_name(name)].float() for name in own.state_dict()})
    return own.eval()


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """Return all tensors of a folder, from one file or several.

    Experts in MXFP4, as in the hub's openai/gpt-oss-20b, are unpacked.
    """
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    for blocks in [name for name in tensors if name.endswith("_blocks")]:
        name = blocks.removesuffix("_blocks")
        weight = mxfp4(tensors.pop(blocks), tensors.pop(f"{name}_scales"))  # (E, out, in)
        tensors[name] = weight.mT.contiguous()  # (E, in, out)
    return tensors


def load_weights(model: nn.Module, tensors: dict[str, Tensor], folder: Path | str) -> None:
    """Fill a model, all its parameters. Raises UserError if names or shapes do not fit."""
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{Path(folder) / WEIGHTS} does not fit its config.json: {error}"
        ) from error


def used_ids(folder: Path | str) -> int:
    """Return how many ids the tokenizer of a folder has; rows of the embedding above pad it."""
    table = json.loads((Path(folder) / "tokenizer.json").read_text())
    added = [token["id"] for token in table["added_tokens"]]
    return 1 + max([*table["model"]["vocab"].values(), *added])
