"""Model folders: weights, config and tokenizer of one model, written and read.

A GPT-OSS folder is what transformers' GptOssForCausalLM reads and writes, so TRL, vLLM and others
run it unchanged (from_hf.py has the names). A baseline's folder has a config.json of our own.
"""

from functools import partial
from pathlib import Path

import tiktoken
from safetensors.torch import save_file
from torch import nn

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import write_json
from crawl2cart.core.model_folder import WEIGHTS, check_model
from crawl2cart.lm.formats.from_hf import exported_name, load_gpt_oss, load_weights, read_weights
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.models.gru import Gru
from crawl2cart.lm.models.init import pad_vocab
from crawl2cart.lm.models.lstm import Lstm
from crawl2cart.lm.models.mlp import Mlp
from crawl2cart.lm.models.recurrent import RecurrentLM
from crawl2cart.lm.models.rnn import Elman
from crawl2cart.lm.tokenizer import END_OF_TEXT, save_tokenizer

# By name, a function of config and vocabulary that makes an uninitialised model.
MODELS = {
    "mlp": Mlp,
    "rnn": partial(RecurrentLM, Elman),
    "lstm": partial(RecurrentLM, Lstm),
    "gru": partial(RecurrentLM, Gru),
    "gpt_oss": GptOss,
}
# Where generation of transformers stops: config.json has room for one of them.
STOPS = ("<|return|>", "<|call|>", END_OF_TEXT)


def exported_config(model: GptOss, tokenizer: tiktoken.Encoding) -> dict:
    """Return GptOssForCausalLM's config with every field: readers differ in their defaults."""
    from transformers import GptOssConfig

    config = model.config
    start, end, padding = (
        tokenizer.encode_single_token(token)
        for token in ("<|startoftext|>", "<|return|>", END_OF_TEXT)
    )
    return GptOssConfig(
        architectures=["GptOssForCausalLM"],
        dtype="float32",
        num_hidden_layers=config["num_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_attention_heads=config["num_heads"],
        num_key_value_heads=config["num_kv_heads"],
        head_dim=config["head_dim"],
        num_local_experts=config["num_experts"],
        num_experts_per_tok=config["experts_per_token"],
        sliding_window=config["sliding_window"],
        layer_types=[
            "sliding_attention" if block.window else "full_attention" for block in model.blocks
        ],
        vocab_size=pad_vocab(model.vocabulary),
        tie_word_embeddings=False,
        attention_bias=True,
        attention_dropout=0.0,
        hidden_act="silu",
        swiglu_alpha=config["swiglu_alpha"],
        swiglu_limit=config["swiglu_limit"],
        rms_norm_eps=config["rms_norm_eps"],
        max_position_embeddings=config["max_position_embeddings"],
        # YaRN with factor 1 is plain RoPE. Some servers read its keys without asking.
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": config["rope_theta"],
            "factor": config["rope_factor"],
            "beta_fast": config["rope_beta_fast"],
            "beta_slow": config["rope_beta_slow"],
            "truncate": False,
            "original_max_position_embeddings": round(
                config["max_position_embeddings"] / config["rope_factor"]
            ),
        },
        router_aux_loss_coef=config["router_aux_loss_coef"],
        router_z_loss_coef=config["router_z_loss_coef"],
        output_router_logits=False,
        use_cache=True,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=padding,
    ).to_dict()


def save_model(model: nn.Module, folder: Path | str, tokenizer: tiktoken.Encoding) -> None:
    """Write a model of this package and its tokenizer into an existing folder, in float32."""
    folder = Path(folder)
    tensors = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    if isinstance(model, GptOss):
        tensors = {exported_name(name): tensor for name, tensor in tensors.items()}
        config = exported_config(model, tokenizer)
        generation = {
            "bos_token_id": config["bos_token_id"],
            "pad_token_id": config["pad_token_id"],
            "eos_token_id": [tokenizer.encode_single_token(token) for token in STOPS],
            "transformers_version": config["transformers_version"],
        }
        write_json(folder / "generation_config.json", generation)
    else:
        config = {**model.config, "model": model.name, "vocabulary": model.vocabulary}
    write_json(folder / "config.json", config)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)


def load_model(folder: Path | str, device: str = "cpu") -> nn.Module:
    """Return any of the five models from its folder, in float32.

    Raises UserError if files are missing or damaged, or do not fit each other.
    """
    config = check_model(folder)
    if config.get("model_type") == "gpt_oss":
        return load_gpt_oss(folder, device)
    if config.get("model") not in MODELS:
        raise UserError(
            f"{folder}/config.json names no model of this project ({', '.join(MODELS)})."
        )
    sizes = {key: value for key, value in config.items() if key not in ("model", "vocabulary")}
    try:
        model = MODELS[config["model"]](sizes, config["vocabulary"])
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder}/config.json is not complete: {error}") from error
    load_weights(model, read_weights(folder), folder)
    return model.to(device).eval()
