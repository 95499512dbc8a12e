"""Write metrics and learning curves: finite numbers, rounded once, in a fixed order.

Timings do not belong here: outs are the same bytes on every run.
"""

import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import atomic_file, write_json

SIGNIFICANT_DIGITS = 5  # of a metric
CURVE_DIGITS = 7  # of a curve: as many as float32 has, so that two runs can be compared
RESAMPLES = 1000  # of the bootstrap


def rounded(value: object, digits: int = SIGNIFICANT_DIGITS) -> object:
    """Return the value with every float rounded to `digits` significant digits.

    value: a number, or nested dicts and lists of them. Raises UserError on a float that is not
    finite.
    """
    if isinstance(value, dict):
        return {str(key): rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(
                f"A metric is {value}, so the training or the measurement went wrong. "
                "See the output of the stage."
            )
        return float(f"{value:.{digits}g}")
    return value


def write_metrics(path: Path | str, values: dict, headlines: Sequence[str] = ()) -> None:
    """Write a metrics file, and headlines/<name> with the few that `dvc metrics` shows.

    values: {model or group: {metric: value}}. headlines: dotted names, in which `*` stands for any
    name ("*.tool_accuracy"); a metric that was not measured is left out.
    """
    path, values = Path(path), rounded(values)
    write_json(path, values)
    if headlines:
        (path.parent / "headlines").mkdir(exist_ok=True)
        write_json(path.parent / "headlines" / path.name, select(values, headlines))


def select(values: dict, names: Sequence[str]) -> dict:
    """Return the metrics that match one of the dotted names, in their groups."""
    selected: dict[str, dict] = {}
    for name in names:
        group_name, metric = name.split(".")
        for group in fnmatch.filter(values, group_name):
            if metric in values[group]:
                selected.setdefault(group, {})[metric] = values[group][metric]
    return selected


def write_curve(path: Path | str, rows: list[dict]) -> None:
    """Write a learning curve as tab-separated values with a header. All rows have the same keys."""
    columns = list(rows[0])
    cells = [[str(rounded(row[column], CURVE_DIGITS)) for column in columns] for row in rows]
    lines = ["\t".join(line) for line in [columns, *cells]]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of hits / n, (0, 1) if n is 0.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean, (0, 0) without values.

    For values other than hits and misses. Efron 1979, https://doi.org/10.1214/aos/1176344552
    """
    if not values:
        return 0.0, 0.0
    draws = np.random.default_rng(seed).choice(
        np.asarray(values, dtype=float), (RESAMPLES, len(values))
    )
    low, high = np.quantile(draws.mean(1), (0.025, 0.975))
    return float(low), float(high)
