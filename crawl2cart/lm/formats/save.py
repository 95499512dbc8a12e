"""Model folders: weights, config and tokenizer of one model, written and read.

A GPT-OSS folder is what transformers' GptOssForCausalLM reads and writes, so TRL, vLLM and others run it unchanged; the mapping
is in hugging_face.py. A baseline's folder has a config.json of ours.
"""

from pathlib import Path

import tiktoken
from safetensors.torch import save_file
from torch import nn

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import write_json
from crawl2cart.core.model_folder import WEIGHTS, check_model
from crawl2cart.lm.formats.from_hf import exported_name, load_gpt_oss, load_weights, read_weights
from crawl2cart.lm.models.attention import FAST_TURNS, SLOW_TURNS, THETA
from crawl2cart.lm.models.gpt_oss import EPSILON, GptOss
from crawl2cart.lm.models.gru import Gru
from crawl2cart.lm.models.init import pad_vocab
from crawl2cart.lm.models.lstm import Lstm
from crawl2cart.lm.models.mlp import Mlp
from crawl2cart.lm.models.moe import GAIN, LIMIT
from crawl2cart.lm.models.rnn import Rnn
from crawl2cart.lm.tokenizer import END_OF_TEXT, save_tokenizer

MODELS = {"mlp": Mlp, "rnn": Rnn, "lstm": Lstm, "gru": Gru, "gpt_oss": GptOss}


def exported_config(model: GptOss, tokenizer: tiktoken.Encoding) -> dict:
    """config.json of GptOssForCausalLM with every field written out: readers differ in their defaults."""
    from transformers import GptOssConfig

    config = model.config
    ids = {
        token: tokenizer.encode_single_token(token)
        for token in ("<|startoftext|>", "<|return|>", END_OF_TEXT)
    }
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
        swiglu_alpha=GAIN,
        swiglu_limit=LIMIT,
        rms_norm_eps=EPSILON,
        max_position_embeddings=config["max_position_embeddings"],
        # YaRN with factor 1 is plain RoPE; servers that read its keys without asking find them.
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": THETA,
            "factor": config["rope_factor"],
            "beta_fast": FAST_TURNS,
            "beta_slow": SLOW_TURNS,
            "truncate": False,
            "original_max_position_embeddings": round(
                config["max_position_embeddings"] / config["rope_factor"]
            ),
        },
        router_aux_loss_coef=config["router_aux_loss_coef"],
        router_z_loss_coef=config["router_z_loss_coef"],
        output_router_logits=False,
        use_cache=True,
        bos_token_id=ids["<|startoftext|>"],
        eos_token_id=ids["<|return|>"],
        pad_token_id=ids[END_OF_TEXT],
    ).to_dict()


def save_model(model: nn.Module, folder: Path | str, tokenizer: tiktoken.Encoding) -> None:
    """Writes a model of this package and its tokenizer into an existing folder, in float32."""
    folder = Path(folder)
    tensors = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    if isinstance(model, GptOss):
        tensors = {exported_name(name): tensor for name, tensor in tensors.items()}
        config = exported_config(model, tokenizer)
        stops = [
            tokenizer.encode_single_token(token)
            for token in ("<|return|>", "<|call|>", END_OF_TEXT)
        ]
        write_json(
            folder / "generation_config.json",
            {
                "bos_token_id": config["bos_token_id"],
                "pad_token_id": config["pad_token_id"],
                "eos_token_id": stops,
                "transformers_version": config["transformers_version"],
            },
        )
    else:
        name = next(name for name, kind in MODELS.items() if isinstance(model, kind))
        config = {**model.config, "model": name, "vocabulary": model.vocabulary}
    write_json(folder / "config.json", config)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)


def load_model(folder: Path | str, device: str = "cpu") -> nn.Module:
    """Any of the five models from its folder, float32. Raises UserError if files are missing or damaged, or do not fit."""
    config = check_model(folder)
    if config.get("model_type") == "gpt_oss":
        return load_gpt_oss(folder, device)
    if config.get("model") not in MODELS:
        raise UserError(
            f"{folder}/config.json names no model of this project ({', '.join(MODELS)})."
        )
    sizes = {key: value for key, value in config.items() if key not in ("model", "vocabulary")}
    model = MODELS[config["model"]](sizes, config["vocabulary"])
    load_weights(model, read_weights(folder), folder)
    return model.to(device).eval()
