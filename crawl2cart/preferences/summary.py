"""Sum up preference pairs and the samples that they come from: metrics/prefs.json."""

from collections import Counter

from crawl2cart.preferences.card import ORIGINS
from crawl2cart.preferences.pairs import artifact_auc, chosen_longer_rate
from crawl2cart.preferences.reward import Score


def summarize_pairs(
    pairs: dict[str, list[dict]], samples: list[Score], tone_accuracy: dict[str, float]
) -> tuple[dict, dict[str, list[str]]]:
    """Return the metrics of the pairs (by split), and by side the words that weigh most.

    pairs: numbers by split, by origin, and of kind middle
    samples: their number, and the shares that are right, and malformed
    chosen_longer_rate: share of pairs whose chosen turn is longer, of all and of the training pairs
    artifact_auc, artifact_auc_by_origin: see pairs.artifact_auc
    tone_scorer: see style_classifier.fit_with_accuracy
    """
    all_pairs = pairs["train"] + pairs["validation"]
    origins = Counter(pair["origin"] for pair in all_pairs)
    auc, telling = artifact_auc(all_pairs)
    auc_by_origin = {
        origin: artifact_auc([pair for pair in all_pairs if pair["origin"] == origin])[0]
        for origin in sorted(origins)
    }
    summary = {
        "pairs": {
            "train": len(pairs["train"]),
            "validation": len(pairs["validation"]),
            "middle": sum(pair["kind"] == "middle" for pair in all_pairs),
            **{origin: origins[origin] for origin in ORIGINS},
        },
        "samples": {
            "n": len(samples),
            "right": sum(sample.right for sample in samples) / len(samples),
            "unreadable": sum(sample.message is None for sample in samples) / len(samples),
        },
        "chosen_longer_rate": {
            "share": chosen_longer_rate(all_pairs),
            "train": chosen_longer_rate(pairs["train"]),
        },
        "artifact_auc": auc,
        "artifact_auc_by_origin": auc_by_origin,
        "tone_scorer": tone_accuracy,
    }
    return summary, telling
