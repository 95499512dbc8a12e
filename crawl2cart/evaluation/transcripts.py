"""Lay out what the models wrote for people to read: data/transcripts."""

from crawl2cart.agent.episodes import EpisodeResult
from crawl2cart.lm.formats import harmony
from crawl2cart.shop.graders import grade_turn
from crawl2cart.shop.tool_schemas import compact


def turn_transcripts(
    turns: list[dict], texts: dict[str, dict[str, str]], lines: dict[str, int]
) -> list[dict]:
    """Return a row for each turn: the right text, and each model's with its grade.

    texts: by model and turn id. lines: line numbers in data/sft/test.jsonl, by dialogue id.
    """
    return [
        {
            "id": turn["id"],
            "line": lines[turn["id"].partition(":")[0]],
            "intent": turn["intent"],
            "before": format_transcript(turn["prompt"]),
            "gold": (gold := harmony.completion(turn["completion"][0])),
            "gold_tool": _tool(gold),
            "answers": {
                model: _graded_answer(turn, by_turn[turn["id"]]) for model, by_turn in texts.items()
            },
        }
        for turn in turns
    ]


def _graded_answer(turn: dict, text: str) -> dict:
    grade = grade_turn(turn, text)
    return {
        "text": text,
        "right": grade.right,
        "reasons": [] if grade.right else grade.reasons,
        "partial": round(grade.partial, 3),
        "tool": _tool(text),
    }


def episode_transcripts(
    dialogues: list[dict], results: dict[str, list[EpisodeResult]], lines: dict[str, int]
) -> list[dict]:
    """Return a row for each recorded dialogue: its messages, and each model's episode.

    results: by model, in the order of the dialogues. lines: as for `turn_transcripts`.
    """
    return [
        {
            "id": dialogue["id"],
            "line": lines[dialogue["id"]],
            "plan": dialogue["plan"],
            "intent": dialogue["intent"],
            "right": format_transcript(dialogue["messages"]),
            "played": {model: _episode(episodes[number]) for model, episodes in results.items()},
        }
        for number, dialogue in enumerate(dialogues)
    ]


def _episode(result: EpisodeResult) -> dict:
    return {
        "messages": format_transcript(result.messages),
        "success": result.success,
        "state": result.state,
        "missing": list(result.missing),
        "policy_violations": result.policy_violations,
    }


def format_transcript(messages: list[dict]) -> list[tuple[str, str]]:
    """Return a conversation as pairs of speaker (customer, assistant, call, tool) and text."""
    lines = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls") or []]
        speaker = "customer" if message["role"] == "user" else message["role"]
        lines += [("call", f"{call['name']} {compact(call['arguments'])}") for call in calls] or [
            (speaker, message["content"])
        ]
    return lines


def _tool(text: str) -> str:
    """Return the first tool that a text calls, or `reply`, or `malformed`."""
    parsed = harmony.parse_completion(text)
    if isinstance(parsed, harmony.Malformed):
        return "malformed"
    return parsed["tool_calls"][0]["function"]["name"] if "tool_calls" in parsed else "reply"
