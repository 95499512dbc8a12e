"""Estimate minutes, memory, disk and download of each stage of a profile that computes on a card.

The estimates follow from the sizes in params.yaml and the rates below, which are published or
measured (not all on a GPU). The table of costs of `make repro` shows the real values.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from crawl2cart.core.files import read_json
from crawl2cart.core.machine import HUB_GIB, cores
from crawl2cart.core.params import Params, Profile
from crawl2cart.lm.formats.save import MODELS
from crawl2cart.lm.training.flops import flops_per_token
from stages.pretrain import TOKENS_AT_ONCE

# Common Crawl's own figures for a WARC file of 2024: pages, and GiB as it is packed.
PAGES_A_FILE, GIB_A_FILE = 28_000, 0.93
# The filter on one EPYC core with `extractor: cascade`: pages of 176 KB, half of them English.
FILTER_SPEED = read_json(Path(__file__).parents[1] / "metrics" / "speed" / "filter.json")
PAGES_A_SECOND = FILTER_SPEED["whole"]["cascade"]["pages_per_s_core"]
# Share of pages that quality filters and deduplication keep (RefinedWeb, Penedo et al. 2023, figure
# 2), and bytes of text of a kept page.
KEPT, TEXT_BYTES = 0.12, 3_500
BYTES_A_TOKEN = 2.6  # a vocabulary of 4,096 on prose
MEBIBYTES_A_SECOND = 60  # of a download: 500 Mbit/s
PEAK = 989e12  # FLOP/s of an H100 or H200 in dense bfloat16
# Shares of PEAK that training reaches on an H200 (metrics/speed/h200.json): gpt_oss 0.31, an LSTM
# 0.28 with 512 rows (the profile has half), LoRA of gpt-oss-20b 0.03. The others are estimates.
USED = {"gpt_oss": 0.30, "mlp": 0.30, "rnn": 0.05, "lstm": 0.15, "gru": 0.10, "tuning": 0.03}
# gpt-oss-20b: GiB in bfloat16, active parameters, tokens per dialogue, decoded tokens per second at
# a batch of 64.
BASE_GIB, BASE_ACTIVE, ROW_TOKENS, DECODED_A_SECOND = 39.0, 3.6e9, 1_200, 700


@dataclass(frozen=True)
class Need:
    """What one stage needs. All but minutes in GiB. disk: its outs without DVC's copy."""

    stage: str
    minutes: float
    memory: float = 1.0
    card: float = 0.0
    disk: float = 0.0
    download: float = 0.0


def pretrain_need(name: str, profile: Profile, vocabulary: int) -> Need:
    """Estimate the training of one language model.

    Minutes follow from the FLOPs of all tokens. The card holds weights, gradients and optimizer
    state in float32 (16 bytes per weight) and the activations of TOKENS_AT_ONCE tokens.
    """
    sizes, scale = getattr(profile.models, name).model_dump(), profile.pretrain
    with torch.device("meta"):
        model = MODELS[name](
            sizes | {"dropout": 0.0, "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0},
            vocabulary,
        )
    weights = sum(parameter.numel() for parameter in model.parameters())
    flops = (
        flops_per_token(model, sizes.get("bptt_length", scale.context))
        * scale.batch_tokens
        * scale.max_steps
    )
    # Activations per token and layer: about 20 hidden states for attention and norms, and for each
    # expert its inputs and both products.
    width, layers = sizes["hidden_size"], sizes.get("num_layers", 1)
    per_expert = 2 * width + 4 * sizes.get("intermediate_size", 0)
    activations = 20 * width + sizes.get("experts_per_token", 0) * per_expert
    card = (16 * weights + 2 * activations * layers * TOKENS_AT_ONCE) / 2**30
    return Need(f"pretrain@{name}", flops / (PEAK * USED[name]) / 60, 4, card, 4 * weights / 2**30)


def tuning_need(stage: str, scale, rows: int, flops_a_weight: int, profile: Profile) -> Need:
    """Estimate SFT or DPO of the 20b model. rows: sequences per entry of the batch."""
    tokens = scale.max_steps * scale.batch_size * rows * min(ROW_TOKENS, scale.max_length)
    training = tokens * flops_a_weight * BASE_ACTIVE / (PEAK * USED["tuning"]) / 60
    minutes = training + decoding_minutes(scale.eval_samples)
    download = HUB_GIB if stage == "sft" else 0
    return Need(stage, minutes, 48, profile.requirements.card_gib, BASE_GIB * rows, download)


def decoding_minutes(turns: int) -> float:
    """Estimate the minutes to load the 20b model and decode answers of about 60 tokens."""
    return 3 + turns * 60 / DECODED_A_SECOND / 60


def needs(params: Params, profile: Profile) -> list[Need]:
    """Estimate all stages of a profile with a hub model, in the order of the graph."""
    download = params.download.at(profile.download)
    is_counted = isinstance(download.files, int) and download.source == "commoncrawl"
    files = download.files if is_counted else 0
    pages = files * PAGES_A_FILE
    text_gib = pages * KEPT * TEXT_BYTES / 2**30
    fetched, workers = files * GIB_A_FILE, min(params.filter.workers, cores())
    samples = profile.build_prefs.prompts * params.build_prefs.samples
    return [
        Need("download", fetched * 1024 / MEBIBYTES_A_SECOND / 60, 1, 0, fetched, fetched),
        Need("filter", pages / PAGES_A_SECOND / workers / 60, 1 + 0.5 * workers, 0, 2 * text_gib),
        Need("encode", text_gib * 2**30 / 4e6 / 60, 1, 0, 2 * text_gib / BYTES_A_TOKEN),
        *(pretrain_need(name, profile, params.encode.vocab_size) for name in MODELS),
        Need("compare", 0.1),
        Need("build_sft", profile.build_sft.train_dialogues / 300 / 60 + 1, 1, 0, 0.2),
        Need("midtrain", 0.2, 1, 0, 0.1),
        tuning_need("sft", profile.sft, 1, 4, profile),
        Need("build_prefs", decoding_minutes(samples), 48, BASE_GIB + 8, 0.1),
        tuning_need("dpo", profile.dpo, 2, 6, profile),
        Need("router", 1),
        Need("evaluate", 3 * decoding_minutes(profile.evaluate.turns), 48, BASE_GIB + 8, 0.1),
        Need("report", 0.2),
    ]


def needs_table(needs: list[Need]) -> list[str]:
    """Format the estimates as lines for a terminal, with totals (of memory the peak)."""
    total = Need(
        "all",
        sum(need.minutes for need in needs),
        max(need.memory for need in needs),
        max(need.card for need in needs),
        sum(need.disk for need in needs),
        sum(need.download for need in needs),
    )
    lines = [f"{'estimates':<16} minutes  memory GiB  card GiB  disk GiB  download GiB"]
    return lines + [
        f"{need.stage:<16} {need.minutes:7.1f}  {need.memory:10.0f}  {need.card:8.0f}  "
        f"{need.disk:8.1f}  {need.download:12.1f}"
        for need in [*needs, total]
    ]
