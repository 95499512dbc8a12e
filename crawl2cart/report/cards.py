"""Model cards for the pretrained, SFT and DPO checkpoints, in the form of the Hugging Face hub, filled from the metrics.

Mitchell et al. 2019, https://arxiv.org/abs/1810.03993
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

Profile `{profile}` of crawl2cart, seed {seed}; `dvc.lock` has the hash of every input.

"""
LIMITS = """
## Limits

{limits} It is a model of an invented shop and web, in English, for study; nothing it says about prices, orders or policies holds
anywhere else.
"""
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
    "sampled": "both turns are the SFT model's own",
    "gold": "the better turn is the recorded one, as all of the model's own were wrong",
    "written": "both replies came with the shop, to teach tone",
    "feedback": "replies that customers gave a thumb",
}


def with_interval(values: dict, name: str) -> str:
    """`0.812 (0.78 to 0.84)`, or the number alone where it has no interval; empty where it is missing."""
    if name not in values:
        return ""
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    return f"{values[name]:.3f}" + (f" ({low:.2f} to {high:.2f})" if low is not None else "")


def origins(pairs: dict[str, int]) -> str:
    """How many pairs come from where, those of both splits: `41 sampled (both turns ...), 31 gold (...)`."""
    return ", ".join(
        f"{pairs[name]:,} {name} ({text})" for name, text in ORIGINS.items() if pairs[name]
    )


def measured(values: dict) -> str:
    """What was measured as a table in Markdown: value, 95 % interval, n."""
    rows = [
        f"| {name.replace('_', ' ')} | {with_interval(values, name)} | {values[f'{name}_n']} |"
        for name in MEASURED
        if name in values
    ]
    return "\n".join(
        [
            "## Measured on unseen products, wordings and plans",
            "",
            "| what | value (95 % interval) | n |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def cards(
    profile: str, seed: int, pretrained: dict, sft: dict, dpo: dict, prefs: dict, evaluated: dict
) -> dict[str, str]:
    """Text of each card by name. pretrained, sft, dpo, prefs, evaluated: the metrics of these stages."""

    def head(title: str, tags: str, about: str) -> str:
        return HEAD.format(title=title, tags=tags, about=about, profile=profile, seed=seed)

    ours = pretrained["gpt_oss"]
    others = ", ".join(
        f"{name} {values['val_bits_per_byte']:.3f}"
        for name, values in pretrained.items()
        if name != "gpt_oss"
    )
    released = "DPO" if dpo["dpo"]["released_is_dpo"] else "SFT"
    failed = [name.replace("_", " ") for name, passed in dpo["guards"].items() if not passed]
    compared = evaluated["dpo_vs_sft"]
    return {
        "pretrained": head(
            "A small GPT-OSS, trained from nothing",
            "pretrained",
            (
                f"{ours['parameters']:,} parameters, of which {ours['active_parameters']:,} meet a token: attention with sinks and windows, "
                f"experts. Trained on {ours['tokens']:,} tokens of filtered web pages."
            ),
        )
        + (
            f"## Measured\n\nBits per byte on held-out pages: {ours['val_bits_per_byte']:.3f} (on the same tokens: {others}).\n"
        )
        + LIMITS.format(
            limits="It goes on with text; it follows no instructions and calls no tools."
        ),
        "sft": head(
            "A shopping agent with ten tools (SFT)",
            "tool-use, sft",
            (
                f"Fine-tuned with LoRA on {sft['sft']['rows']:,} assistant turns of shopping dialogues, then merged. It speaks the harmony "
                "format, with its chat template."
            ),
        )
        + measured(evaluated["sft"])
        + LIMITS.format(
            limits="It knows the tools of its own shop only, and errs as often as the table says."
        ),
        "dpo": head(
            "A shopping agent with ten tools (DPO)",
            "tool-use, dpo",
            (
                f"The SFT model after DPO on {prefs['pairs']['train']:,} pairs of a better and a worse turn; together with the "
                f"{prefs['pairs']['validation']:,} held-out ones these are {origins(prefs['pairs'])}. Released by the guards: {released}"
                f"{' (failed: ' + ', '.join(failed) + ')' if failed else ''}."
            ),
        )
        + measured(evaluated["dpo"])
        + (
            f"\nAgainst SFT on {compared['n']} held-out prompts: {compared['wins']} wins, {compared['ties']} ties, "
            f"{compared['losses']} losses; length-controlled win rate {with_interval(compared, 'length_controlled_win_rate')}, "
            f"sign test p = {compared['p']:.3g}.\n"
        )
        + LIMITS.format(
            limits="Tone was preferred among right answers only; it knows the tools of its own shop only."
        ),
    }
