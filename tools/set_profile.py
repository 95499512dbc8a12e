"""Choose the profile: `python -m tools.set_profile smoke` writes it into params.yaml, where DVC and the stages read it."""

import re
import sys
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import NAMES, read_params

ROOT = Path(__file__).parent.parent
LINE = re.compile(r"^profile: *\w+", re.MULTILINE)


def choose_profile(name: str) -> None:
    """Changes that one line of params.yaml; comments stay."""
    if name not in NAMES:
        raise UserError(f"PROFILE={name} is not one of {', '.join(NAMES)}.")
    path = ROOT / "params.yaml"
    text = path.read_text()
    changed = LINE.sub(f"profile: {name}", text, count=1)
    if changed != text:
        path.write_text(changed)
        print(
            f"params.yaml now says profile: {name}. `git checkout params.yaml dvc.lock metrics` and `dvc checkout` "
            "bring the committed state back."
        )


def current_profile() -> str:
    return read_params(ROOT / "params.yaml").profile


if __name__ == "__main__":
    try:
        choose_profile(sys.argv[1])
    except UserError as problem:
        sys.exit(f"make: {problem}")
