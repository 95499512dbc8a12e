"""Read the dependencies, parameters and outputs of each stage from dvc.yaml.

dvc.yaml is the only list of them. Each stage reads its own entry, so what DVC hashes and what the
stage may read are the same.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from crawl2cart.core.errors import UserError


@dataclass(frozen=True)
class Definition:
    """One stage of dvc.yaml.

    deps, outs: paths below the root; outs include metrics and plots. params: dotted keys of
    params.yaml.
    """

    name: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


def read_yaml(path: Path) -> dict:
    """Read YAML 1.2, in which 1e-05 is a number (PyYAML reads it as text)."""
    if not path.is_file():
        raise UserError(f"{path} is missing. Run the stages from the folder that holds dvc.yaml.")
    return YAML(typ="safe").load(path)


def definitions(root: Path, profile: str) -> dict[str, Definition]:
    """Return all stages of dvc.yaml by name, `${…}` filled in. A matrix item is `pretrain@gru`."""
    stages = {}
    for name, entry in read_yaml(root / "dvc.yaml")["stages"].items():
        for item in entry.get("matrix", {}).get("model", [None]):
            full_name = name if item is None else f"{name}@{item}"
            stages[full_name] = definition(
                full_name, entry, {"profile": profile, "item.model": item}
            )
    return stages


def definition(name: str, entry: dict, variables: dict[str, str | None]) -> Definition:
    """Read one stage. entry: its mapping in dvc.yaml. variables: the values of `${…}`."""

    def filled(key: str) -> tuple[str, ...]:
        # An item with options is a mapping: {metrics/sft.tsv: {cache: false}}.
        items = (item if isinstance(item, str) else next(iter(item)) for item in entry.get(key, []))
        return tuple(re.sub(r"\$\{([a-z_.]+)\}", lambda m: variables[m[1]], item) for item in items)

    outs = filled("outs") + filled("metrics") + filled("plots")
    return Definition(name, filled("deps"), filled("params"), outs)
