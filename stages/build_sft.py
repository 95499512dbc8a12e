"""Make shopping dialogues whose tool calls were really executed on the store.

in   data/store, all but tone.jsonl
out  data/sft/{train,validation,test,safety}.jsonl, tools.json, lexicon.json, card.json, README.md (the card to read)

Held out by product, by wording and by plan; order numbers and e-mails of test occur in no training dialogue. Dialogues are
made as in tau-bench, by a scripted customer and tools on a real database. Yao et al. 2024, https://arxiv.org/abs/2406.12045
"""

from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_directory, write_json, write_jsonl
from crawl2cart.core.stage import Stage, run
from crawl2cart.dialogues.card import card, page
from crawl2cart.dialogues.episode import EventRates
from crawl2cart.dialogues.generator import (
    CASES,
    DialogueGenerator,
    Mixture,
    named_products,
    shop_lexicon,
)
from crawl2cart.dialogues.params import BuildSft
from crawl2cart.dialogues.teacher import Teacher, add_wordings, further_dialogues
from crawl2cart.shop.confirmation import contains_phrase
from crawl2cart.shop.tool_schemas import TOOLS

STORE = Path("data/store")


def identifiers(dialogue: dict) -> set[str]:
    """Order numbers and e-mails that were drawn for a dialogue."""
    filed = dialogue["session"]["orders"]
    return {entry["order"]["order"] for entry in filed} | {entry["email"] for entry in filed}


def check_apart(train: list[dict], other: list[dict], names: set[str], split: str) -> None:
    """Raises UserError if a training dialogue shares a wording, plan, order number or e-mail with `other`, or names its products."""
    for what, of in (
        ("the wording", lambda row: set(row["wordings"])),
        ("the plan", lambda row: {row["plan"]} - {None}),
        ("the order number or e-mail", identifiers),
    ):
        shared = set().union(*map(of, train)) & set().union(*map(of, other))
        # A bare value ("{order}") is what everybody answers.
        shared = {value for value in shared if not value.startswith("{") or " " in value}
        if shared:
            raise UserError(
                f"train and {split} share {what} {min(shared)!r}. Give it one split only in {STORE}."
            )
    for dialogue in train:
        text = " ".join(message["content"] for message in dialogue["messages"]).casefold()
        for name in names:
            if name in text and contains_phrase(text, name):
                raise UserError(f"{dialogue['id']} names {name!r}, a product held out for {split}.")


def mix_of(params: BuildSft) -> Mixture:
    """What the dialogues are made of, as params.yaml says."""
    return Mixture(
        params.intent_weights.model_dump(),
        params.train_intent_weights.model_dump(),
        params.style_weights.model_dump(),
    )


def open_teacher(stage: Stage) -> Teacher:
    params = stage.params.build_sft
    return Teacher(
        "build_sft.teacher",
        params.teacher_model,
        params.teacher_input_price,
        params.teacher_output_price,
        params.teacher_budget,
        stage.cache_dir,
        connections=params.teacher_connections,
    )


def main(stage: Stage) -> None:
    params, sizes = stage.params.build_sft, stage.params.profile.build_sft
    maker = DialogueGenerator(
        STORE,
        stage.params.seed,
        params.max_characters,
        mix_of(params),
        EventRates(plan=params.multi_turn_ratio),
    )
    teacher = open_teacher(stage) if params.teacher == "openai" else None
    if teacher:
        add_wordings(teacher, maker, params.teacher_wordings, stage.params.seed)
    splits = {
        "train": maker.split("train", sizes.train_dialogues),
        "validation": maker.split("validation", sizes.validation_dialogues),
        "test": maker.split("test", sizes.test_dialogues),
        "safety": maker.safety("test", sizes.safety_dialogues),
    }
    if teacher:
        splits["train"] += further_dialogues(
            teacher, maker, splits["train"], params.teacher_dialogues
        )
    for name in ("validation", "test", "safety"):
        names = named_products(maker.world.shops, "validation" if name == "validation" else "test")
        check_apart(splits["train"], splits[name], names, name)
    with atomic_directory("data/sft") as folder:
        for name, dialogues in splits.items():
            write_jsonl(folder / f"{name}.jsonl", dialogues)
        write_json(folder / "tools.json", TOOLS)
        write_json(folder / "lexicon.json", shop_lexicon(maker).to_dict())
        described = card(splits, maker, teacher.summary() if teacher else None)
        write_json(folder / "card.json", described)
        (folder / "README.md").write_text(page(described, splits))
    if teacher:
        print(
            f"the teacher cost about ${teacher.dollars:.2f}; kept {dict(teacher.kept)}, rejected {dict(teacher.rejected)}"
        )
    print(
        f"{', '.join(f'{len(dialogues):,} {name}' for name, dialogues in splits.items())} dialogues ({', '.join(CASES)} in safety)"
    )
    if maker.unused:
        print(
            f"{len(maker.unused)} wordings or plans fit no product and were left out: {', '.join(sorted(maker.unused))}"
        )


if __name__ == "__main__":
    run(main)
