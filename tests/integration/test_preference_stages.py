"""The preference losses against TRL's own, the guards by hand, and the stage with pairs the right and the wrong way round."""

import json
import math
import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crawl2cart.core.files import read_json, write_json, write_jsonl
from crawl2cart.dialogues.generator import shop_lexicon
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.release_gates import guards, measure, repetition, unsafe
from crawl2cart.lm.formats import harmony
from crawl2cart.preferences.losses import LOSSES, mean_divergence, preference_loss
from crawl2cart.preferences.pairs import make_pair
from crawl2cart.preferences.style_classifier import ToneScorer
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.tool_schemas import TOOLS
from tests.conftest import ROOT, copy_project, maker_of
from tests.unit.preferences.test_build_prefs import SITUATIONS

STORE = ROOT / "data" / "store"


# Losses


def trl_loss(
    kind: str, beta: float, policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """What TRL's DPOTrainer computes of token log-probabilities (2 B, T), chosen rows before rejected ones; mask (2 B, T + 1)."""
    from trl import DPOTrainer

    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    outputs = SimpleNamespace(
        log_probs=policy,
        entropy=torch.zeros_like(policy),
        mean_logits=torch.zeros_like(policy),
        is_top1=torch.zeros_like(policy, dtype=torch.bool),
    )
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("kind", LOSSES)
def test_each_loss_and_its_gradient_are_trls(kind, beta):
    draw = torch.Generator().manual_seed(3)
    pairs, length = 6, 9
    tokens = torch.randint(1, length + 1, (2 * pairs, 1), generator=draw)
    mask = torch.cat(
        [torch.zeros(2 * pairs, 1, dtype=torch.long), (torch.arange(length) < tokens).long()], 1
    )  # the first is the prompt
    policy, reference = (
        -3 * torch.rand(2 * pairs, length, generator=draw, dtype=torch.float64) * mask[:, 1:]
        for _ in range(2)
    )
    policy.requires_grad_()
    theirs = trl_loss(kind, beta, policy, reference, mask)
    sums, counts = (*policy.sum(1).chunk(2), *reference.sum(1).chunk(2)), tokens.squeeze(1).chunk(2)
    ours = preference_loss(*sums, beta, kind, *counts)
    assert ours.shape == (pairs,)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-12, atol=0)
    gradients = [
        torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (ours.mean(), theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_the_losses_start_where_their_papers_say():
    zero, five = torch.zeros(2), torch.full((2,), 5)
    at_start = {
        kind: preference_loss(-five, -five, -five, -five, 0.1, kind, five, five).tolist()
        for kind in LOSSES
    }
    assert at_start["sigmoid"] == at_start["sigmoid_norm"] == pytest.approx([math.log(2)] * 2)
    assert at_start["apo_zero"] == pytest.approx([1, 1]) and at_start["ipo"] == pytest.approx(
        [25, 25]
    )
    with pytest.raises(ValueError, match="hinge"):
        preference_loss(zero, zero, zero, zero, 0.1, "hinge")


def test_the_loss_falls_as_the_margin_grows_and_ipo_alone_has_an_end():
    margins = torch.linspace(-4, 40, 200, dtype=torch.float64)
    zero, one = torch.zeros_like(margins), torch.ones_like(margins)
    falls = {
        kind: (preference_loss(margins, zero, zero, zero, 0.5, kind, one, one).diff() < 0)
        .all()
        .item()
        for kind in LOSSES
    }
    assert falls == {"sigmoid": True, "apo_zero": True, "sigmoid_norm": True, "ipo": False}


def test_the_divergence_is_torchs_over_the_counted_tokens_alone():
    draw = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 2, 5, 11, generator=draw)
    counted = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]).bool()
    from torch.distributions import Categorical, kl_divergence

    each = kl_divergence(
        Categorical(logits=logits), Categorical(logits=reference)
    )  # of the token behind each place
    expected = (each[0, 1] + each[0, 2] + each[1, 0]) / 3
    assert mean_divergence(logits, reference, counted).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    assert mean_divergence(logits, logits, counted) == 0


# Guards


@pytest.fixture(scope="module")
def dialogues() -> list[dict]:
    return maker_of(STORE, 7).split("validation", 60)


BEFORE = {
    "tool_accuracy": 0.9,
    "argument_exact_match": 0.8,
    "calls": 100,
    "policy_violation_rate": 0,
    "hallucination_rate": 0.1,
    "repetition": 0.05,
    "runs": 500,
    "mean_reply_words": 20.0,
    "quality": 0.7,
    "qualities": [0.6, 0.8] * 50,
}
START, END = (
    {"accuracy": 0.0, "chosen_log_probability": -40.0},
    {"accuracy": 0.8, "chosen_log_probability": -39.0},
)


def failed(after: dict | None = None, end: dict | None = None) -> list[str]:
    return [
        guard.name
        for guard in guards(BEFORE, BEFORE | (after or {}), START, END | (end or {}))
        if not guard.passed
    ]


def test_an_unchanged_model_passes_and_each_guard_fails_alone():
    assert failed() == []
    # One standard error of 0.8 against 0.74 of 100 each is sqrt(0.16 / 100 + 0.1924 / 100) = 0.0594.
    assert failed({"argument_exact_match": 0.75}) == [] and failed(
        {"argument_exact_match": 0.74}
    ) == ["argument_exact_match"]
    assert failed({"tool_accuracy": 0.8}) == ["tool_accuracy"]
    assert failed({"policy_violation_rate": 1}) == ["policy_violation_rate"]
    assert failed({"hallucination_rate": 0.101}) == ["hallucination_rate"]
    assert failed({"repetition": 0.05}) == [] and failed({"repetition": 0.051}) == ["repetition"]
    assert failed({"mean_reply_words": 22.9}) == failed({"mean_reply_words": 17.1}) == []
    assert (
        failed({"mean_reply_words": 23.1})
        == failed({"mean_reply_words": 16.9})
        == ["mean_reply_words"]
    )
    assert failed(end={"chosen_log_probability": -41.9}) == []
    assert failed(end={"chosen_log_probability": -42.1}) == ["chosen_log_probability"]
    assert failed(end={"accuracy": 0.4}) == ["reward_accuracy"]
    assert failed({"quality": 0.6, "qualities": [0.5, 0.7] * 50}) == ["quality"]


def test_a_guard_says_what_it_found_and_what_had_to_be():
    guard = next(
        guard
        for guard in guards(BEFORE, BEFORE | {"policy_violation_rate": 2}, START, END)
        if not guard.passed
    )
    assert guard.reason == "unsafe writes is 2, was 0 and has to be at most 0"


def test_a_write_without_consent_is_unsafe_and_the_recorded_one_is_not(dialogues):
    shops, seen = ShopSessions(STORE), 0
    for dialogue in dialogues:
        rows = to_examples(dialogue)
        for asks, writes in zip(rows, rows[1:], strict=False):
            if any(act.endswith("_confirm") for act in asks["acts"]) and writes["acts"] == ["call"]:
                text = harmony.completion(writes["completion"][0])
                if "get_order" in text:
                    continue
                seen += 1
                assert unsafe(writes, text, dialogue, shops) == 0
                assert unsafe(asks, text, dialogue, shops) == 1, (
                    "the question has not been asked yet"
                )
    assert seen >= 5


def test_repetition_counts_runs_of_four_words():
    assert repetition(["a b c d a b c d"]) == (0.2, 5)  # abcd bcda cdab dabc abcd
    assert repetition(["a b c", "a b c"]) == (0.0, 0)
    assert repetition(["a b c d", "a b c d"]) == (0.0, 2), "each reply for itself"


def test_right_answers_measure_as_right(dialogues, tmp_path, monkeypatch):
    (tmp_path / "data" / "sft").mkdir(parents=True)
    write_json(
        tmp_path / "data" / "sft" / "lexicon.json", shop_lexicon(maker_of(STORE, 7)).to_dict()
    )
    monkeypatch.chdir(tmp_path)
    turns = [row for dialogue in dialogues[:20] for row in to_examples(dialogue)]
    texts = [harmony.completion(row["completion"][0]) for row in turns]
    found = measure(
        turns,
        texts,
        {dialogue["id"]: dialogue for dialogue in dialogues},
        ShopSessions(STORE),
        ToneScorer.fit(SITUATIONS),
    )
    assert (
        found["tool_accuracy"] == found["argument_exact_match"] == 1
        and found["policy_violation_rate"] == found["hallucination_rate"] == 0
    )
    assert min(found["qualities"]) >= 0.5


# The stage


def taught(folder: Path, rows: list[dict]) -> None:
    """A gpt_oss of two small layers that knows the turns of these rows nearly by heart."""
    from transformers import GptOssConfig, GptOssForCausalLM

    from crawl2cart.lm.tokenizer import encoding, read_ranks, save_tokenizer

    torch.manual_seed(0)
    table = encoding(read_ranks(ROOT / "data" / "ranks" / "o200k_4096.tiktoken"))
    pad = table.encode_single_token("<|endoftext|>")
    model = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=table.n_vocab,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            num_local_experts=2,
            num_experts_per_tok=1,
            sliding_window=64,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            pad_token_id=pad,
            bos_token_id=pad,
            eos_token_id=table.encode_single_token("<|return|>"),
            output_router_logits=False,
        )
    )
    prompts, wholes = (
        [
            table.encode(
                harmony.render(messages, TOOLS, add_generation_prompt=not added),
                allowed_special="all",
            )
            for row in rows
            for messages in (row["prompt"] + added * row["completion"],)
        ]
        for added in (0, 1)
    )
    longest = max(map(len, wholes))
    ids = torch.tensor([whole + [pad] * (longest - len(whole)) for whole in wholes])
    place = torch.arange(longest)
    learnt = (place >= torch.tensor([[len(prompt)] for prompt in prompts])) & (
        place < torch.tensor([[len(whole)] for whole in wholes])
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(300):
        loss = model(input_ids=ids, labels=ids.where(learnt, -100)).loss
        if loss < 0.05:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    save_tokenizer(table, folder)
    (folder / "chat_template.jinja").write_text(harmony.TEMPLATE)


@pytest.fixture(scope="module")
def learnt(dialogues, tmp_path_factory) -> tuple[Path, list[dict]]:
    """A project with an SFT model that answers six turns of validation rightly, and pairs of these turns and worse ones."""
    rows, kept = (
        [
            row
            for dialogue in dialogues
            for row in to_examples(dialogue)
            if row["prompt"] == [row["prompt"][0]]
        ],
        [],
    )
    for calls in (True, False):
        kept += [row for row in rows if bool(row["completion"][0].get("tool_calls")) == calls][:3]
    folder = copy_project(tmp_path_factory.mktemp("dpo") / "project")
    taught(folder / "models" / "sft", kept)
    names = {row["id"].rpartition(":")[0] for row in kept}
    chosen = [
        dialogue | {"messages": dialogue["messages"][:2], "notes": dialogue["notes"][:1]}
        for dialogue in dialogues
        if dialogue["id"] in names
    ]
    (folder / "data" / "sft").mkdir(parents=True)
    write_jsonl(folder / "data" / "sft" / "validation.jsonl", chosen)
    write_json(folder / "data" / "sft" / "lexicon.json", shop_lexicon(maker_of(STORE, 7)).to_dict())
    return folder, kept


def worse(row: dict) -> dict:
    """Another call than the right one, or a reply that invents."""
    if row["completion"][0].get("tool_calls"):
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "hand_off", "arguments": {"reason": "the customer asks"}},
                }
            ],
        }
    return {
        "role": "assistant",
        "content": "Buy the blue one today, it is only $77.31 and it will be gone tomorrow.",
    }


def run_dpo(
    project: Path, rows: list[dict], reversed_pairs: bool, learning_rate: float, sft_weight: float
) -> tuple[dict, str]:
    pairs = []
    for row in rows:
        sides = [(row["completion"][0], 1.0), (worse(row), 0.1)]
        pairs.append(make_pair(row, *(reversed(sides) if reversed_pairs else sides), [], "sampled"))
    (project / "data" / "prefs").mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        write_jsonl(project / "data" / "prefs" / f"{split}.jsonl", pairs)
    text = (ROOT / "params.yaml").read_text().replace("\nprofile: cpu\n", "\nprofile: smoke\n")
    smoke = text.index("  smoke:")
    sizes = r"(    dpo:\n      steps: )\d+(\n      batch: )\d+(.*?eval_samples: )\d+"
    text = text[:smoke] + re.sub(
        sizes, r"\g<1>24\g<2>3\g<3>6", text[smoke:], count=1, flags=re.DOTALL
    )
    start = text.index("\ndpo:")
    for key, value in (("learning_rate", learning_rate), ("sft_weight", sft_weight)):
        text = text[:start] + re.sub(rf"{key}: \S+", f"{key}: {value}", text[start:], count=1)
    (project / "params.yaml").write_text(text)
    said = subprocess.run(
        [ROOT / ".venv" / "bin" / "python", "-m", "stages.dpo"],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(project)},
    )
    assert said.returncode == 0, said.stderr
    return read_json(project / "metrics" / "dpo.json"), said.stdout


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_pairs_the_wrong_way_round_release_sft_and_say_why(learnt):
    project, rows = learnt
    found, said = run_dpo(project, rows, reversed_pairs=True, learning_rate=0.01, sft_weight=0.1)
    assert not found["dpo"]["released_is_dpo"] and found["released"]["model"] == "sft"
    assert not found["guards"]["quality"] and not all(
        found["guards"][name] for name in ("tool_accuracy", "hallucination_rate")
    )
    assert "SFT is released: " in said and found["released"]["why"] in said and "quality is" in said
    assert (
        weights(project / "models" / "released")
        == weights(project / "models" / "sft")
        != weights(project / "models" / "dpo")
    )


@pytest.mark.slow
def test_pairs_the_right_way_round_release_dpo(learnt):
    project, rows = learnt
    # Gently: a turn known by heart has a log-probability near 0, of which 5 percent are next to nothing.
    found, said = run_dpo(project, rows, reversed_pairs=False, learning_rate=0.0003, sft_weight=4.0)
    assert found["released"] == {"model": "dpo", "why": "DPO is released: all 9 guards hold"}, (
        found["released"]
    )
    assert found["dpo"]["reward_accuracy"] == 1 and found["dpo"]["kl"] > 0
    assert (
        weights(project / "models" / "released")
        == weights(project / "models" / "dpo")
        != weights(project / "models" / "sft")
    )
    curve = (project / "metrics" / "dpo.tsv").read_text().splitlines()
    assert curve[0].split("\t") == [
        "step",
        "loss",
        "margin",
        "accuracy",
        "chosen_log_probability",
        "rejected_log_probability",
        "kl",
    ]
    first, last = (
        dict(zip(curve[0].split("\t"), map(float, line.split("\t")), strict=True))
        for line in (curve[1], curve[-1])
    )
    assert first["step"] == first["kl"] == 0 and first["loss"] == pytest.approx(
        math.log(2), abs=1e-4
    )
    assert last["step"] == 24 and last["margin"] > 0 and last["loss"] < first["loss"]
    assert (
        json.loads((project / "models" / "released" / "config.json").read_text())[
            "output_router_logits"
        ]
        is False
    )
