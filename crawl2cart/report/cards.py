"""Write model cards for the pretrained, SFT and DPO checkpoints from the metrics.

The cards have the form of the Hugging Face hub. Mitchell et al. 2019,
https://arxiv.org/abs/1810.03993
"""

HEAD = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [gpt-oss, {tags}]
---

# {title}

{about}

## Made with

crawl2cart, profile `{profile}`, seed {seed}. `dvc.lock` has the hash of every input.

"""
LIMITS = (
    "\n## Limits\n\n{limits} The model is for study. It knows an invented shop and an invented "
    "web, in English. Nothing that it says about prices, orders or policies holds anywhere else.\n"
)
SHOP_LIMITS = "It knows the tools of its own shop only. The table shows how often it errs."
MEASURED = (
    "tool_accuracy",
    "argument_exact_match",
    "schema_valid_rate",
    "pass_1",
    "pass_3",
    "policy_violation_rate",
    "hallucination_rate",
    "attack_success_rate",
    "citation_accuracy",
    "out_of_scope_refusal_rate",
)
ORIGINS = {
    "sampled": "the SFT model wrote both turns",
    "gold": "the better turn is the recorded one, because all of the model's were wrong",
    "written": "both replies came with the shop, to teach style",
    "feedback": "customers rated the replies",
}


def with_interval(values: dict, metric: str) -> str:
    """Return `0.812 (0.78 to 0.84)`, without the interval if there is none, empty if missing."""
    if metric not in values:
        return ""
    low, high = values.get(f"{metric}_low"), values.get(f"{metric}_high")
    return f"{values[metric]:.3f}" + (f" ({low:.2f} to {high:.2f})" if low is not None else "")


def origins(pairs: dict[str, int]) -> str:
    """Return how many pairs of both splits have each origin: `41 sampled (…), 31 gold (…)`."""
    return ", ".join(
        f"{pairs[name]:,} {name} ({text})" for name, text in ORIGINS.items() if pairs[name]
    )


def measured(values: dict) -> str:
    """Return an agent's metrics as a table in Markdown: value, 95 % interval, n."""
    rows = [
        f"| {name.replace('_', ' ')} | {with_interval(values, name)} | {values[f'{name}_n']} |\n"
        for name in MEASURED
        if name in values
    ]
    return (
        "## Measured on unseen products, wordings and plans\n\n"
        "| metric | value (95 % interval) | n |\n| --- | --- | --- |\n" + "".join(rows)
    )


def pretrained_card(metrics: dict, profile: str, seed: int) -> str:
    """Return the card of the GPT-OSS that was trained from scratch."""
    values = metrics["pretrain"]["gpt_oss"]
    others = ", ".join(
        f"{name} {other['val_bits_per_byte']:.3f}"
        for name, other in metrics["pretrain"].items()
        if name != "gpt_oss"
    )
    about = (
        f"A mixture of experts with {values['parameters']:,} parameters, of which "
        f"{values['active_parameters']:,} are active for a token. Attention has sinks and sliding "
        f"windows. Trained on {values['tokens']:,} tokens of filtered web pages."
    )
    title = "A small GPT-OSS, trained from scratch"
    head = HEAD.format(title=title, tags="pretrained", about=about, profile=profile, seed=seed)
    results = (
        f"## Measured\n\nBits per byte on held-out pages: {values['val_bits_per_byte']:.3f} "
        f"(other models on the same tokens: {others}).\n"
    )
    limits = "It continues text. It follows no instructions and calls no tools."
    return head + results + LIMITS.format(limits=limits)


def sft_card(metrics: dict, profile: str, seed: int) -> str:
    """Return the card of the model after SFT."""
    about = (
        f"Fine-tuned with LoRA on {metrics['sft']['sft']['rows']:,} assistant turns of shopping "
        "dialogues, then merged. It reads and writes the harmony format; its chat template is "
        "included."
    )
    title = "A shopping agent with ten tools (SFT)"
    head = HEAD.format(title=title, tags="tool-use, sft", about=about, profile=profile, seed=seed)
    return head + measured(metrics["evaluate"]["sft"]) + LIMITS.format(limits=SHOP_LIMITS)


def dpo_card(metrics: dict, profile: str, seed: int) -> str:
    """Return the card of the model after DPO."""
    pairs, dpo = metrics["prefs"]["pairs"], metrics["dpo"]
    released = "DPO" if dpo["dpo"]["released_is_dpo"] else "SFT"
    failed = [name.replace("_", " ") for name, passed in dpo["guards"].items() if not passed]
    reason = f" (failed release gates: {', '.join(failed)})" if failed else ""
    about = (
        f"The SFT model after DPO on {pairs['train']:,} pairs of a better and a worse turn. The "
        f"origins of these and of {pairs['validation']:,} held-out pairs: {origins(pairs)}. "
        f"Released model: {released}{reason}."
    )
    title = "A shopping agent with ten tools (DPO)"
    head = HEAD.format(title=title, tags="tool-use, dpo", about=about, profile=profile, seed=seed)
    compared = metrics["evaluate"]["dpo_vs_sft"]
    against_sft = (
        f"\nAgainst SFT on {compared['n']} held-out prompts: {compared['wins']} wins, "
        f"{compared['ties']} ties, {compared['losses']} losses. Length-controlled win rate: "
        f"{with_interval(compared, 'length_controlled_win_rate')}. "
        f"Sign test: p = {compared['p']:.3g}.\n"
    )
    limits = f"The preferences are about style among right answers only. {SHOP_LIMITS}"
    results = measured(metrics["evaluate"]["dpo"]) + against_sft
    return head + results + LIMITS.format(limits=limits)


def cards(profile: str, seed: int, metrics: dict) -> dict[str, str]:
    """Return the text of each card by name.

    metrics: the metrics of the stages pretrain, sft, prefs, dpo and evaluate.
    """
    return {
        "pretrained": pretrained_card(metrics, profile, seed),
        "sft": sft_card(metrics, profile, seed),
        "dpo": dpo_card(metrics, profile, seed),
    }
