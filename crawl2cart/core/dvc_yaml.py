"""What dvc.yaml says about one stage: its dependencies and its parameters.

dvc.yaml is the only list of them. Each stage reads its own entry, so that what DVC hashes and what the stage may read
cannot drift apart.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from crawl2cart.core.errors import UserError


@dataclass(frozen=True)
class Definition:
    """One stage as DVC sees it. deps and outs: paths below the root. params: dotted keys of params.yaml."""

    name: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


def read_yaml(path: Path) -> dict:
    """Reads YAML 1.2, in which 1e-05 is a number (PyYAML reads it as text)."""
    if not path.is_file():
        raise UserError(f"{path} is missing. Run the stages from the folder that holds dvc.yaml.")
    return YAML(typ="safe").load(path)


def definitions(root: Path, profile: str) -> dict[str, Definition]:
    """All stages of dvc.yaml by name (`pretrain@gru` for matrix items), `${…}` filled in."""
    found = {}
    for name, entry in read_yaml(root / "dvc.yaml")["stages"].items():
        items = entry.get("matrix", {}).get("model", [None])
        for item in items:
            values = {"profile": profile, "item.model": item}

            def fill(text: str, values=values) -> str:
                return re.sub(r"\$\{([a-z_.]+)\}", lambda match: str(values[match[1]]), text)

            def paths(key: str, fill=fill, entry=entry) -> tuple[str, ...]:
                listed = entry.get(key, [])
                return tuple(
                    fill(path if isinstance(path, str) else next(iter(path))) for path in listed
                )

            full = name if item is None else f"{name}@{item}"
            found[full] = Definition(
                full,
                paths("deps"),
                paths("params"),
                paths("outs") + paths("metrics") + paths("plots"),
            )
    return found
