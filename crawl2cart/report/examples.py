"""Choose the turns and dialogues that the report shows in full."""

from collections import Counter

MAX_TURNS, MAX_EPISODES, MAX_WORST = 6, 4, 20


def last_user_message(turn: dict) -> str:
    """Return the customer's last message before the turn."""
    return next(text for role, text in reversed(turn["before"]) if role == "customer")


def disagreements(turns: list[dict]) -> list[dict]:
    """Return turns in which SFT and DPO differ, first those that only one of them gets right."""
    differ = [
        turn for turn in turns if turn["answers"]["sft"]["text"] != turn["answers"]["dpo"]["text"]
    ]
    differ.sort(key=lambda turn: turn["answers"]["sft"]["right"] == turn["answers"]["dpo"]["right"])
    return differ[:MAX_TURNS]


def worst_turns(turns: list[dict], agent: str) -> list[dict]:
    """Return the agent's worst turns by partial credit, one of each intent before a second."""
    wrong = [turn for turn in turns if not turn["answers"][agent]["right"]]
    wrong.sort(key=lambda turn: turn["answers"][agent]["partial"])
    counts: Counter[str] = Counter()
    ranks = []
    for turn in wrong:
        counts[turn["intent"]] += 1
        ranks.append(counts[turn["intent"]])
    ranked = sorted(zip(ranks, wrong, strict=True), key=lambda pair: pair[0])
    return [turn for _, turn in ranked][:MAX_WORST]


def sample_episodes(episodes: list[dict]) -> list[dict]:
    """Return dialogues, first those that some models complete and others do not."""

    def all_agree(episode: dict) -> bool:
        return len({result["success"] for result in episode["played"].values()}) == 1

    return sorted(episodes, key=all_agree)[:MAX_EPISODES]
