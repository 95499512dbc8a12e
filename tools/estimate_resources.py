"""What each stage of a profile that computes on a card will take: minutes, memory, disk, download. Estimates, not measured.

They follow from the sizes in params.yaml and the rates below, which are published ones or those measured (not all on a GPU); the ledger
of `make repro` says what it was.
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
# Of the filter on one core of an EPYC: pages a second with `extractor: cascade` on real pages of 176 KB, every second one in English.
PAGES_A_SECOND = read_json(Path(__file__).parents[1] / "metrics" / "speed" / "filter.json")[
    "whole"
]["cascade"]["pages_per_s_core"]
# Share of pages that English quality filters and copies leave (RefinedWeb, Penedo et al. 2023, figure 2), and their text.
KEPT, TEXT_BYTES = 0.12, 3_500
BYTES_A_TOKEN = 2.6  # of the 4,096 ranks on prose
MEBIBYTES_A_SECOND = 60  # of a download: 500 Mbit/s
PEAK = 989e12  # FLOP/s of an H100 or H200 in dense bfloat16
# Shares of it that training reaches on an H200 (metrics/speed/h200.json): the mixture 0.31, an LSTM 0.28 with 512 rows at once, of
# which the profile has half, and LoRA of gpt-oss-20b 0.03 with one row of 2,048 or 4,096 tokens at once. The others are not measured.
USED = {"gpt_oss": 0.30, "mlp": 0.30, "rnn": 0.05, "lstm": 0.15, "gru": 0.10, "tuning": 0.03}
# gpt-oss-20b: GiB in bfloat16, weights that a token meets, tokens of a dialogue's row, tokens a second with a batch of 64.
BASE_GIB, BASE_ACTIVE, ROW_TOKENS, WRITTEN_A_SECOND = 39.0, 3.6e9, 1_200, 700


@dataclass(frozen=True)
class Need:
    """Of one stage. card and memory in GiB, disk in GiB of what stays of it (DVC's copy in the cache not counted)."""

    stage: str
    minutes: float
    memory: float = 1.0
    card: float = 0.0
    disk: float = 0.0
    download: float = 0.0


def pretrain_need(name: str, profile: Profile, vocabulary: int) -> Need:
    """Of one language model: FLOPs of all its tokens, and on the card weights, gradients and optimizer in fp32 (16 bytes a
    weight) and what one pass of TOKENS_AT_ONCE tokens keeps for the way back."""
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
    # Per token and layer: about 20 rows of the width for attention and norms, and for each expert its inputs and both products.
    width, layers = sizes["hidden_size"], sizes.get("num_layers", 1)
    kept = 20 * width + sizes.get("experts_per_token", 0) * (
        2 * width + 4 * sizes.get("intermediate_size", 0)
    )
    card = (16 * weights + 2 * kept * layers * TOKENS_AT_ONCE) / 2**30
    return Need(f"pretrain@{name}", flops / (PEAK * USED[name]) / 60, 4, card, 4 * weights / 2**30)


def tuning_need(stage: str, scale, rows: int, flops_a_weight: int, profile: Profile) -> Need:
    """Of SFT or DPO of the 20b model. rows: sequences in an entry of the batch."""
    tokens = scale.max_steps * scale.batch_size * rows * min(ROW_TOKENS, scale.max_length)
    minutes = tokens * flops_a_weight * BASE_ACTIVE / (PEAK * USED["tuning"]) / 60 + written(
        scale.eval_samples
    )
    return Need(
        stage,
        minutes,
        48,
        profile.requirements.card_gib,
        BASE_GIB * rows,
        HUB_GIB if stage == "sft" else 0,
    )


def written(turns: int) -> float:
    """Minutes to load the 20b model and let it answer so many turns of about 60 tokens."""
    return 3 + turns * 60 / WRITTEN_A_SECOND / 60


def needs(params: Params, profile: Profile) -> list[Need]:
    """All stages of a profile whose base model is of the hub, in the order of the graph."""
    download = params.download.at(profile.download)
    files = (
        download.files
        if isinstance(download.files, int) and download.source == "commoncrawl"
        else 0
    )
    pages = files * PAGES_A_FILE
    text_gib = pages * KEPT * TEXT_BYTES / 2**30
    fetched, workers = files * GIB_A_FILE, min(params.filter.workers, cores())
    look = profile.build_prefs.prompts * params.build_prefs.samples
    return [
        Need("download", fetched * 1024 / MEBIBYTES_A_SECOND / 60, 1, 0, fetched, fetched),
        Need("filter", pages / PAGES_A_SECOND / workers / 60, 1 + 0.5 * workers, 0, 2 * text_gib),
        Need("encode", text_gib * 2**30 / 4e6 / 60, 1, 0, 2 * text_gib / BYTES_A_TOKEN),
        *(pretrain_need(name, profile, params.encode.vocab_size) for name in MODELS),
        Need("compare", 0.1),
        Need("build_sft", profile.build_sft.train_dialogues / 300 / 60 + 1, 1, 0, 0.2),
        Need("midtrain", 0.2, 1, 0, 0.1),
        tuning_need("sft", profile.sft, 1, 4, profile),
        Need("build_prefs", written(look), 48, BASE_GIB + 8, 0.1),
        tuning_need("dpo", profile.dpo, 2, 6, profile),
        Need("router", 1),
        Need("evaluate", 3 * written(profile.evaluate.turns), 48, BASE_GIB + 8, 0.1),
        Need("report", 0.2),
    ]


def needs_table(found: list[Need]) -> list[str]:
    """Lines for a terminal, the sums last."""
    whole = Need(
        "all",
        sum(need.minutes for need in found),
        max(need.memory for need in found),
        max(need.card for need in found),
        sum(need.disk for need in found),
        sum(need.download for need in found),
    )
    lines = [f"{'estimates':<16} minutes  memory GiB  card GiB  disk GiB  download GiB"]
    return lines + [
        f"{need.stage:<16} {need.minutes:7.1f}  {need.memory:10.0f}  {need.card:8.0f}  {need.disk:8.1f}  {need.download:12.1f}"
        for need in [*found, whole]
    ]
