"""Numbers for people and for `dvc metrics diff`: finite, rounded once, in a fixed order, free of timings."""

import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_file, write_json

# Digits of a metric; and of a curve, where two runs that should be the same are compared: as many as float32 has.
SIGNIFICANT_DIGITS, CURVE_DIGITS = 5, 7
RESAMPLES = 1000  # of a bootstrap


def rounded(value: object, digits: int = SIGNIFICANT_DIGITS) -> object:
    """The value with every float cut to so many significant digits. Raises UserError on a float that is not finite."""
    if isinstance(value, dict):
        return {str(key): rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(
                f"A metric is {value}: the run before it went wrong; look at its log under runs/."
            )
        return float(f"{value:.{digits}g}")
    return value


def write_metrics(path: Path | str, values: dict, headlines: Sequence[str] = ()) -> None:
    """Writes one metrics file, `{model or group: {metric: value}}`, and those that `dvc metrics` shows beside it: headlines/<name>.

    headlines: dotted names, in which `*` stands for any name ("*.tool_accuracy"); what a run did not measure is left out.
    """
    path, values = Path(path), rounded(values)
    write_json(path, values)
    if headlines:
        (path.parent / "headlines").mkdir(exist_ok=True)
        write_json(path.parent / "headlines" / path.name, chosen(values, headlines))


def chosen(values: dict, names: Sequence[str]) -> dict:
    """The groups with those of their metrics that the names fit."""
    found: dict[str, dict] = {}
    for name in names:
        group_name, metric = name.split(".")
        for group in fnmatch.filter(values, group_name):
            if metric in values[group]:
                found.setdefault(group, {})[metric] = values[group][metric]
    return found


def write_curve(path: Path | str, rows: list[dict]) -> None:
    """Writes a learning curve as tab-separated values with a header; all rows have the keys of the first."""
    columns = list(rows[0])
    lines = ["\t".join(columns)]
    lines += [
        "\t".join(str(rounded(row[column], CURVE_DIGITS)) for column in columns) for row in rows
    ]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share. Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean, for values that are no hits and misses. Efron 1979, https://doi.org/10.1214/aos/1176344552."""
    if not values:
        return 0.0, 0.0
    draws = np.random.default_rng(seed).choice(
        np.asarray(values, dtype=float), (RESAMPLES, len(values))
    )
    low, high = np.quantile(draws.mean(1), (0.025, 0.975))
    return float(low), float(high)
