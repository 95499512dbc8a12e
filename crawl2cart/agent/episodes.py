"""Let an agent do recorded dialogues again with a scripted customer, many at a time."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from crawl2cart.agent.agent import Agent
from crawl2cart.agent.endpoint import Writer
from crawl2cart.shop.confirmation import contains_phrase
from crawl2cart.shop.env import Scenario, ShopSessions
from crawl2cart.shop.tool_schemas import TOOLS, WRITES
from crawl2cart.shop.tools import Session, policy_violations

REFUSAL = "No, that is not what I asked for."


@dataclass(frozen=True)
class EpisodeResult:
    """The outcome of one episode.

    state: the store ended as recorded. missing: facts that the recorded replies give and this
    agent's do not. policy_violations: attempted writes that the shop's rules forbid.
    """

    messages: list[dict]
    state: bool
    missing: tuple[str, ...]
    policy_violations: int

    @property
    def success(self) -> bool:
        return self.state and not self.missing and not self.policy_violations


def run_episode(dialogue: dict, session: Session) -> Generator[list[dict], str, EpisodeResult]:
    """Run a dialogue of data/sft with its customer scripted; yields and is sent as Agent.turn.

    The customer takes the recorded turns, but confirms only a question that restates the recorded
    change; anything else gets REFUSAL.
    """
    agent = Agent(session)
    turn_intents = iter(dialogue["turns"])
    for place, message in enumerate(dialogue["messages"]):
        if message["role"] != "user":
            continue
        confirms = next(turn_intents) == "confirm"
        refuses = confirms and not session.is_pending(*_first_write(dialogue["messages"][place:]))
        yield from agent.turn(REFUSAL if refuses else message["content"])
    replies = "\n".join(
        message["content"] for message in agent.messages if message["role"] == "assistant"
    )
    facts = dict.fromkeys(fact for note in dialogue["notes"] for fact in note["facts"])
    return EpisodeResult(
        agent.messages,
        session.store.state_hash() == dialogue["end_state"],
        tuple(fact for fact in facts if not contains_phrase(replies, fact)),
        policy_violations(session.calls),
    )


def _first_write(messages: list[dict]) -> tuple[str, dict]:
    """Return name and arguments of the first write among these messages."""
    calls = (call["function"] for message in messages for call in message.get("tool_calls", []))
    return next((call["name"], call["arguments"]) for call in calls if call["name"] in WRITES)


def run_episodes(
    dialogues: Sequence[dict],
    shops: ShopSessions,
    writer: Writer,
    batch: int,
    run: Callable[..., Generator] = run_episode,
) -> list:
    """Run many episodes, `batch` of them side by side, so that the writer gets many turns at once.

    run: the generator of one episode. Returns what the generators return, in dialogue order.
    """
    results: dict[int, object] = {}
    waiting = list(reversed(range(len(dialogues))))
    active: dict[int, tuple[Generator, list[dict]]] = {}
    while waiting or active:
        while waiting and len(active) < batch:
            number = waiting.pop()
            episode = run(dialogues[number], shops.session(Scenario.of(dialogues[number])))
            active[number] = episode, next(episode)
        texts = writer([prompt for _, prompt in active.values()], TOOLS)
        for (number, (episode, _)), text in zip(list(active.items()), texts, strict=True):
            try:
                active[number] = episode, episode.send(text)
            except StopIteration as end:
                results[number] = end.value
                del active[number]
    return [results[number] for number in range(len(dialogues))]
