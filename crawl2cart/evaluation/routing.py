"""Measure the router, and the router and the agent together, on queries with known labels."""

from collections.abc import Callable

from crawl2cart.evaluation.turn_metrics import share


def routed_metrics(
    route: Callable[[str], str],
    queries: list[dict],
    dialogues: list[dict],
    turns: list[dict],
    right: dict[str, bool],
) -> dict[str, float | int]:
    """Return the shares of first queries that are routed, and answered, rightly.

    routing_accuracy: of `queries` and of the dialogues' first messages, those with the right label;
    a dialogue's is `shopping`, and out-of-scope dialogues are left out. `n` is its denominator.
    end_to_end_accuracy: of the first turns among `turns`, those routed to shopping and right.

    route: returns the label of a text. queries: rows with `text` and `label`. right: by turn id,
    whether the released model's turn is right.
    """
    labelled = [(query["text"], query["label"]) for query in queries]
    labelled += [
        (dialogue["messages"][0]["content"], "shopping")
        for dialogue in dialogues
        if dialogue["intent"] != "out_of_scope"
    ]
    routing = share("routing_accuracy", [route(text) == label for text, label in labelled])
    first_turns = [
        turn for turn in turns if len(turn["prompt"]) == 1 and turn["intent"] != "out_of_scope"
    ]
    end_to_end = share(
        "end_to_end_accuracy",
        [
            route(turn["prompt"][0]["content"]) == "shopping" and right[turn["id"]]
            for turn in first_turns
        ],
    )
    return {"n": routing.pop("routing_accuracy_n"), **routing, **end_to_end}
