"""Model folders: weights, config and tokenizer of one model, written and read.

A GPT-OSS folder is what transformers' GptOssForCausalLM reads and writes, so TRL, vLLM and others run it unchanged; the mapping
is a renaming, since our tensors have Hugging Face's layout. A baseline's folder has a config.json of ours.
"""

import json
from pathlib import Path

import tiktoken
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.common.files import write_json
from stages.common.models import WEIGHTS, check_model
from stages.common.problem import Problem
from stages.nn.attention import FAST_TURNS, SLOW_TURNS, THETA
from stages.nn.experts import GAIN, LIMIT
from stages.nn.gpt_oss import EPSILON, GptOss
from stages.nn.gru import Gru
from stages.nn.initial import padded
from stages.nn.lstm import Lstm
from stages.nn.mlp import Mlp
from stages.nn.openai_weights import mxfp4
from stages.nn.rnn import Rnn
from stages.nn.tokenizer import END_OF_TEXT, save_tokenizer

MODELS = {"mlp": Mlp, "rnn": Rnn, "lstm": Lstm, "gru": Gru, "gpt_oss": GptOss}
# Ours -> Hugging Face's, whole model and one block.
WHOLE = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
BLOCK = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight", "query_bias": "self_attn.q_proj.bias",
    "key": "self_attn.k_proj.weight", "key_bias": "self_attn.k_proj.bias",
    "value": "self_attn.v_proj.weight", "value_bias": "self_attn.v_proj.bias",
    "output": "self_attn.o_proj.weight", "output_bias": "self_attn.o_proj.bias",
    "sinks": "self_attn.sinks",
    "expert_norm": "post_attention_layernorm.weight",
    "router": "mlp.router.weight", "router_bias": "mlp.router.bias",
    "gate_up": "mlp.experts.gate_up_proj", "gate_up_bias": "mlp.experts.gate_up_proj_bias",
    "down": "mlp.experts.down_proj", "down_bias": "mlp.experts.down_proj_bias",
}


def exported_name(name: str) -> str:
    """`blocks.3.query` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in WHOLE:
        return WHOLE[name]
    _, layer, word = name.split(".")
    return f"model.layers.{layer}.{BLOCK[word]}"


def exported_config(model: GptOss, tokenizer: tiktoken.Encoding) -> dict:
    """config.json of GptOssForCausalLM with every field written out: readers differ in their defaults."""
    from transformers import GptOssConfig

    config = model.config
    ids = {token: tokenizer.encode_single_token(token) for token in ("<|startoftext|>", "<|return|>", END_OF_TEXT)}
    return GptOssConfig(
        architectures=["GptOssForCausalLM"], dtype="float32",
        num_hidden_layers=config["layers"], hidden_size=config["width"], intermediate_size=config["expert_width"],
        num_attention_heads=config["heads"], num_key_value_heads=config["key_value_heads"], head_dim=config["head_size"],
        num_local_experts=config["experts"], num_experts_per_tok=config["experts_per_token"],
        sliding_window=config["window"],
        layer_types=["sliding_attention" if block.window else "full_attention" for block in model.blocks],
        vocab_size=padded(model.vocabulary), tie_word_embeddings=False, attention_bias=True, attention_dropout=0.0,
        hidden_act="silu", swiglu_alpha=GAIN, swiglu_limit=LIMIT, rms_norm_eps=EPSILON,
        max_position_embeddings=config["max_context"],
        # YaRN with factor 1 is plain RoPE; servers that read its keys without asking find them.
        rope_parameters={"rope_type": "yarn", "rope_theta": THETA, "factor": config["rope_factor"],
                         "beta_fast": FAST_TURNS, "beta_slow": SLOW_TURNS, "truncate": False,
                         "original_max_position_embeddings": round(config["max_context"] / config["rope_factor"])},
        router_aux_loss_coef=config["balance"], router_z_loss_coef=config["z_loss"], output_router_logits=False, use_cache=True,
        bos_token_id=ids["<|startoftext|>"], eos_token_id=ids["<|return|>"], pad_token_id=ids[END_OF_TEXT],
    ).to_dict()


def imported_config(config: dict) -> dict:
    """Our config from a GptOssForCausalLM's. Raises Problem on what our model has no place for."""
    # rope_scaling and rope_theta are the names of transformers before 5, and of openai's own files on the hub.
    rope = config.get("rope_parameters") or {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    expected = {"swiglu_limit": LIMIT, "rms_norm_eps": EPSILON, "tie_word_embeddings": False, "attention_bias": True,
                "rope_theta": THETA, "rope_type": "yarn", "truncate": False, "beta_fast": FAST_TURNS, "beta_slow": SLOW_TURNS,
                "layer_types": ["full_attention" if layer % 2 else "sliding_attention"
                                for layer in range(config["num_hidden_layers"])]}
    found = {**config, **rope}
    wrong = {key: found.get(key) for key in expected if found.get(key) != expected[key]}
    if wrong:
        raise Problem(f"This GPT-OSS has {wrong}, which the model here does not do. Load it with transformers instead.")
    return {"layers": config["num_hidden_layers"], "width": config["hidden_size"], "heads": config["num_attention_heads"],
            "key_value_heads": config["num_key_value_heads"], "head_size": config["head_dim"],
            "expert_width": config["intermediate_size"], "experts": config["num_local_experts"],
            "experts_per_token": config["num_experts_per_tok"], "window": config["sliding_window"],
            "max_context": config["max_position_embeddings"], "rope_factor": rope["factor"],
            # transformers has no z-loss; ours is kept in its config, where it is ignored.
            "balance": config["router_aux_loss_coef"], "z_loss": config.get("router_z_loss_coef", 0.0)}


def save_model(model: nn.Module, folder: Path | str, tokenizer: tiktoken.Encoding) -> None:
    """Writes a model of this package and its tokenizer into an existing folder, in float32."""
    folder = Path(folder)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if isinstance(model, GptOss):
        tensors = {exported_name(name): tensor for name, tensor in tensors.items()}
        config = exported_config(model, tokenizer)
        stops = [tokenizer.encode_single_token(token) for token in ("<|return|>", "<|call|>", END_OF_TEXT)]
        write_json(folder / "generation_config.json", {
            "bos_token_id": config["bos_token_id"], "pad_token_id": config["pad_token_id"], "eos_token_id": stops,
            "transformers_version": config["transformers_version"]})
    else:
        name = next(name for name, kind in MODELS.items() if isinstance(model, kind))
        config = {**model.config, "model": name, "vocabulary": model.vocabulary}
    write_json(folder / "config.json", config)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)


def load_model(folder: Path | str, device: str = "cpu") -> nn.Module:
    """Any of the five models from its folder, float32. Raises Problem if files are missing or damaged, or do not fit."""
    config = check_model(folder)
    tensors = read_weights(folder)
    if config.get("model_type") == "gpt_oss":
        model = GptOss(imported_config(config), used_ids(folder))
        tensors = {name: tensors.pop(exported_name(name)) for name in model.state_dict()} | tensors
    elif config.get("model") in MODELS:
        sizes = {key: value for key, value in config.items() if key not in ("model", "vocabulary")}
        model = MODELS[config["model"]](sizes, config["vocabulary"])
    else:
        raise Problem(f"{folder}/config.json names no model of this project ({', '.join(MODELS)}).")
    load_weights(model, tensors, folder)
    return model.to(device).eval()


def read_weights(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or several; experts in MXFP4 (as the hub's openai/gpt-oss-20b has them) unpacked."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    for blocks in [name for name in tensors if name.endswith("_blocks")]:
        name = blocks.removesuffix("_blocks")
        tensors[name] = mxfp4(tensors.pop(blocks), tensors.pop(f"{name}_scales")).mT.contiguous()   # (E, out, in) -> (E, in, out)
    return tensors


def load_gpt_oss(folder: Path | str, device: str = "cpu") -> GptOss:
    """A GPT-OSS from a GptOssForCausalLM folder. Raises Problem as `load_model` does, and on another model."""
    model = load_model(folder, device)
    if not isinstance(model, GptOss):
        raise Problem(f"{folder} holds a {type(model).__name__}, where a GPT-OSS is needed.")
    return model


def load_weights(model: nn.Module, tensors: dict[str, Tensor], folder: Path | str) -> None:
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    except RuntimeError as error:
        raise Problem(f"{Path(folder) / WEIGHTS} does not fit its config.json: {error}") from error


def used_ids(folder: Path | str) -> int:
    """How many ids the tokenizer of a folder has; the embedding's rows above are padding."""
    table = json.loads((Path(folder) / "tokenizer.json").read_text())
    return 1 + max([*table["model"]["vocab"].values(), *(token["id"] for token in table["added_tokens"])])
