"""Make shopping dialogues whose tool calls were really executed on the store.

in   data/store, all but tone.jsonl
out  data/sft/{train,validation,test,safety}.jsonl, tools.json, lexicon.json (the vocabulary of the
     shop), card.json, README.md (the card to read)

A scripted customer talks with a scripted agent, whose tools run on a real database, as in
tau-bench. Products, wordings and plans are held out; no order number or e-mail of test occurs in
training. Yao et al. 2024, https://arxiv.org/abs/2406.12045
"""

from collections.abc import Callable
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, write_json, write_jsonl
from crawl2cart.core.stage import Stage, run
from crawl2cart.dialogues.card import card, page
from crawl2cart.dialogues.episode_setup import EventRates
from crawl2cart.dialogues.generator import (
    CASES,
    DialogueGenerator,
    Mixture,
    held_out_names,
    shop_vocabulary,
)
from crawl2cart.dialogues.params import BuildSft
from crawl2cart.dialogues.teacher import Teacher, add_wordings, teach_dialogues
from crawl2cart.shop.confirmation import contains_phrase
from crawl2cart.shop.tool_schemas import TOOLS

STORE = Path("data/store")


def identifiers(dialogue: dict) -> set[str]:
    """Return the order numbers and e-mails that were drawn for a dialogue."""
    orders = dialogue["session"]["orders"]
    return {entry["order"]["order"] for entry in orders} | {entry["email"] for entry in orders}


# What train may not share with another split.
EXCLUSIVE: dict[str, Callable[[dict], set[str]]] = {
    "the wording": lambda dialogue: set(dialogue["wordings"]),
    "the plan": lambda dialogue: {dialogue["plan"]} - {None},
    "the order number or e-mail": identifiers,
}


def check_separation(train: list[dict], other: list[dict], names: set[str], split: str) -> None:
    """Raise UserError if training dialogues share with `other` what belongs to one split.

    names: short names of the products of `other`, which no training dialogue may name.
    """
    for what, values in EXCLUSIVE.items():
        shared = set().union(*map(values, train)) & set().union(*map(values, other))
        # A bare slot ("{order}") is what every customer may answer.
        shared = {value for value in shared if not value.startswith("{") or " " in value}
        if shared:
            raise UserError(
                f"train and {split} share {what} {min(shared)!r}. Give it to one split only, "
                f"in the files of {STORE}."
            )
    for dialogue in train:
        text = " ".join(message["content"] for message in dialogue["messages"]).casefold()
        for name in names:
            if name in text and contains_phrase(text, name):
                raise UserError(
                    f"The training dialogue {dialogue['id']} names {name!r}, a product held out "
                    f"for {split}. Remove the name from the texts of {STORE}."
                )


def mixture_of(params: BuildSft) -> Mixture:
    """Return the mixture of dialogues that params.yaml asks for."""
    return Mixture(
        params.intent_weights.model_dump(),
        params.train_intent_weights.model_dump(),
        params.style_weights.model_dump(),
    )


def open_teacher(stage: Stage) -> Teacher | None:
    """Open the teacher, or return None if params.yaml asks for none."""
    params = stage.params.build_sft
    if params.teacher != "openai":
        return None
    return Teacher(
        "build_sft.teacher",
        params.teacher_model,
        params.teacher_input_price,
        params.teacher_output_price,
        params.teacher_budget,
        stage.cache_dir,
        connections=params.teacher_connections,
    )


def make_splits(
    stage: Stage, generator: DialogueGenerator, teacher: Teacher | None
) -> dict[str, list[dict]]:
    """Make the dialogues of all splits and check that train shares nothing with the others."""
    params, sizes = stage.params.build_sft, stage.params.profile.build_sft
    if teacher:
        add_wordings(teacher, generator, params.teacher_wordings, stage.params.seed)
    splits = {
        "train": generator.split("train", sizes.train_dialogues),
        "validation": generator.split("validation", sizes.validation_dialogues),
        "test": generator.split("test", sizes.test_dialogues),
        "safety": generator.safety("test", sizes.safety_dialogues),
    }
    if teacher:
        count = params.teacher_dialogues
        splits["train"] += teach_dialogues(teacher, generator, splits["train"], count)
    for name, owner in (("validation", "validation"), ("test", "test"), ("safety", "test")):
        names = held_out_names(generator.context.shops, owner)
        check_separation(splits["train"], splits[name], names, name)
    return splits


def print_summary(
    splits: dict[str, list[dict]], generator: DialogueGenerator, teacher: Teacher | None
) -> None:
    if teacher:
        print(
            f"teacher: about ${teacher.dollars:.2f}; accepted {dict(teacher.accepted)}, "
            f"rejected {dict(teacher.rejected)}"
        )
    counts = ", ".join(f"{len(dialogues):,} {name}" for name, dialogues in splits.items())
    print(f"dialogues: {counts} (safety cases: {', '.join(CASES)})")
    if generator.unused:
        names = ", ".join(sorted(generator.unused))
        print(f"left out, since they fit no product: {len(generator.unused)} templates: {names}")


def main(stage: Stage) -> None:
    params = stage.params.build_sft
    rates = EventRates(multi_turn=params.multi_turn_ratio)
    generator = DialogueGenerator(
        STORE, stage.params.seed, params.max_characters, mixture_of(params), rates
    )
    teacher = open_teacher(stage)
    splits = make_splits(stage, generator, teacher)
    described = card(splits, generator, teacher.summary() if teacher else None)
    with atomic_directory("data/sft") as folder:
        for name, dialogues in splits.items():
            write_jsonl(folder / f"{name}.jsonl", dialogues)
        write_json(folder / "tools.json", TOOLS)
        write_json(folder / "lexicon.json", shop_vocabulary(generator).to_dict())
        write_json(folder / "card.json", described)
        (folder / "README.md").write_text(page(described, splits))
    print_summary(splits, generator, teacher)


if __name__ == "__main__":
    run(main)
