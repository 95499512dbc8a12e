"""A GPT-OSS of ours from a folder of transformers' GptOssForCausalLM: a renaming, since the tensors have the same layout."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from crawl2cart.core.errors import UserError
from crawl2cart.core.model_folder import WEIGHTS, check_model
from crawl2cart.lm.formats.from_openai import mxfp4
from crawl2cart.lm.models.attention import FAST_TURNS, SLOW_TURNS, THETA
from crawl2cart.lm.models.gpt_oss import EPSILON, GptOss
from crawl2cart.lm.models.moe import LIMIT

# Ours -> Hugging Face's, whole model and one block.
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


def rope_of(config: dict) -> dict:
    """rope_scaling and rope_theta are the names of transformers before 5, and of openai's own files on the hub."""
    return config.get("rope_parameters") or {
        **config["rope_scaling"],
        "rope_theta": config["rope_theta"],
    }


def foreign(config: dict) -> dict:
    """What of a GptOssForCausalLM's config our model does not do, with the values that it has there."""
    expected = {
        "swiglu_limit": LIMIT,
        "rms_norm_eps": EPSILON,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "rope_theta": THETA,
        "rope_type": "yarn",
        "truncate": False,
        "beta_fast": FAST_TURNS,
        "beta_slow": SLOW_TURNS,
        "layer_types": [
            "full_attention" if layer % 2 else "sliding_attention"
            for layer in range(config["num_hidden_layers"])
        ],
    }
    found = {**config, **rope_of(config)}
    return {key: found.get(key) for key in expected if found.get(key) != expected[key]}


def imported_config(config: dict) -> dict:
    """Our config from a GptOssForCausalLM's. Raises UserError on what our model has no place for."""
    if wrong := foreign(config):
        raise UserError(
            f"This GPT-OSS has {wrong}, which the model here does not do. Load it with transformers instead."
        )
    rope = rope_of(config)
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
        # transformers has no z-loss; ours is kept in its config, where it is ignored.
        "router_aux_loss_coef": config["router_aux_loss_coef"],
        "router_z_loss_coef": config.get("router_z_loss_coef", 0.0),
    }


def load_gpt_oss(folder: Path | str, device: str = "cpu") -> GptOss:
    """A GPT-OSS from a GptOssForCausalLM folder, float32. Raises UserError if files are missing or damaged, and on another model."""
    config = check_model(folder)
    if config.get("model_type") != "gpt_oss":
        raise UserError(
            f"{folder} holds a {config.get('model', config.get('model_type'))}, where a GPT-OSS is needed."
        )
    model = GptOss(imported_config(config), used_ids(folder))
    tensors = read_weights(folder)
    load_weights(
        model,
        {name: tensors.pop(exported_name(name)) for name in model.state_dict()} | tensors,
        folder,
    )
    return model.to(device).eval()


def imported(model: nn.Module, vocabulary: int) -> GptOss:
    """A copy of a GptOssForCausalLM, float32. vocabulary: how many ids are in use."""
    own = GptOss(imported_config(model.config.to_dict()), vocabulary)
    tensors = model.state_dict()
    own.load_state_dict({name: tensors[exported_name(name)].float() for name in own.state_dict()})
    return own.eval()


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or several; experts in MXFP4 (as the hub's openai/gpt-oss-20b has them) unpacked."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    for blocks in [name for name in tensors if name.endswith("_blocks")]:
        name = blocks.removesuffix("_blocks")
        tensors[name] = mxfp4(
            tensors.pop(blocks), tensors.pop(f"{name}_scales")
        ).mT.contiguous()  # (E, out, in) -> (E, in, out)
    return tensors


def load_weights(model: nn.Module, tensors: dict[str, Tensor], folder: Path | str) -> None:
    try:
        model.load_state_dict(
            {name: tensor.float() for name, tensor in tensors.items()}, strict=True
        )
    except RuntimeError as error:
        raise UserError(
            f"{Path(folder) / WEIGHTS} does not fit its config.json: {error}"
        ) from error


def used_ids(folder: Path | str) -> int:
    """How many ids the tokenizer of a folder has; the embedding's rows above are padding."""
    table = json.loads((Path(folder) / "tokenizer.json").read_text())
    return 1 + max(
        [*table["model"]["vocab"].values(), *(token["id"] for token in table["added_tokens"])]
    )
