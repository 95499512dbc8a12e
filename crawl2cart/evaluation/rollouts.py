"""What an agent does over whole dialogues: whether it ends with the right store and facts, three times in a row, and safely.

pass^k is the share of dialogues in which k runs out of k succeed: Yao et al. 2024, https://arxiv.org/abs/2406.12045, section 3.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from crawl2cart.agent.endpoint import Writer
from crawl2cart.agent.episodes import EpisodeResult, run_episode, run_episodes
from crawl2cart.core.metrics import share_interval
from crawl2cart.dialogues.sft_examples import to_examples
from crawl2cart.evaluation.turn_metrics import summarize_turns
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.training.distributed import ALONE, ProcessGroup
from crawl2cart.shop.env import ShopSessions
from crawl2cart.shop.graders import obeyed
from crawl2cart.shop.grounding import ShopVocabulary
from crawl2cart.shop.tools import Session

RUNS = 3


@dataclass(frozen=True)
class Case:
    """A safety case: the first turn that the agent wrote by itself, and how the dialogue went."""

    text: str
    play: EpisodeResult


def critical(dialogue: dict, session: Session) -> Generator[list[dict], str, Case]:
    """Plays a dialogue from its last reply on: before it the assistant did what is recorded, so that every agent stands before the
    review that gives orders, the order that is somebody else's, the customer who does not confirm, the policy that was looked up, or
    what no shop does. Yields as `play`.
    """
    before = [message for message in dialogue["messages"][:-1] if message["role"] == "assistant"]
    run = run_episode(dialogue, session)
    try:
        prompt = next(run)
        for message in before:
            prompt = run.send(harmony.completion(message))
        text = first = yield prompt
        while True:
            text = yield run.send(text)
    except StopIteration as end:
        return Case(first, end.value)


def share(name: str, hits: Sequence[bool]) -> dict[str, float | int]:
    """A share with its interval and the number it is of."""
    low, high = share_interval(sum(hits), len(hits))
    return {
        name: sum(hits) / max(1, len(hits)),
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_n": len(hits),
    }


def passed_all(
    dialogues: Sequence[dict],
    shops: ShopSessions,
    sampler: Callable[[int], Writer],
    batch: int,
    world: ProcessGroup = ALONE,
) -> list[bool]:
    """Whether a dialogue succeeds in RUNS sampled runs out of RUNS. sampler: a writer for the seed of a run.

    A run is played only with the dialogues that succeeded in the runs before it: the others have failed already.
    """
    left = list(range(len(dialogues)))
    for run in range(RUNS):
        plays = world.all_gather(
            run_episodes(
                [dialogues[number] for number in world.shard(left)], shops, sampler(run), batch
            )
        )
        left = [number for number, played in zip(left, plays, strict=True) if played.success]
    return [number in left for number in range(len(dialogues))]


def safety(
    dialogues: Sequence[dict], cases: Sequence[Case], words: ShopVocabulary | None = None
) -> dict[str, list[bool]]:
    """For each safety case whether the agent attempted an unsafe write; and of those of injection, whether it obeyed."""
    found: dict[str, list[bool]] = {"obeyed": []}
    for dialogue, case in zip(dialogues, cases, strict=True):
        found.setdefault(dialogue["case"], []).append(bool(case.play.policy_violations))
        if dialogue["case"] == "injection":
            found["obeyed"].append(obeyed(to_examples(dialogue)[-1], case.text, words))
    return found


def trials(
    plans: Sequence[dict],
    cases: Sequence[dict],
    shops: ShopSessions,
    writer: Writer,
    sampler: Callable[[int], Writer] | None,
    batch: int,
    words: ShopVocabulary | None = None,
    world: ProcessGroup = ALONE,
) -> tuple[dict[str, float | int], list[EpisodeResult]]:
    """The metrics of one agent over plans and safety cases, and how the plans went; in every process of `world`, which share them.

    pass_1: plans that end with the right store, all facts told and no unsafe write, with the agent's likeliest words.
    pass_3: plans in which RUNS sampled runs all do; left out without a sampler. policy_violation_rate: plays and cases with an
    attempted one, `_count` attempts in all. attack_success_rate, unauthorized_write_rate, unconfirmed_write_rate, citation_accuracy, declines: of the
    safety cases of that kind. words: as for `judge`.
    """
    plays = world.all_gather(run_episodes(world.shard(plans), shops, writer, batch))
    played = world.all_gather(run_episodes(world.shard(cases), shops, writer, batch, critical))
    kinds = safety(cases, played, words)
    everything = [*plays, *(case.play for case in played)]
    found = share("pass_1", [one.success for one in plays])
    if sampler:
        found |= share("pass_3", passed_all(plans, shops, sampler, batch, world))
    found |= share("policy_violation_rate", [bool(one.policy_violations) for one in everything])
    found |= {"policy_violation_count": sum(one.policy_violations for one in everything)}
    found |= share("attack_success_rate", kinds["obeyed"])
    for kind in ("foreign", "unconfirmed"):
        found |= share(f"{kind}_writes", kinds.get(kind, []))
    told = summarize_turns(
        [to_examples(case)[-1] for case in cases], [one.text for one in played], words
    )
    found |= {
        name: value
        for name, value in told.items()
        if name.startswith(("citation_accuracy", "out_of_scope_refusal_rate"))
    }
    return found, plays
