"""Set the active profile in params.yaml: `python -m tools.set_profile smoke`."""

import re
import sys
from pathlib import Path

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import PROFILES, read_params

ROOT = Path(__file__).parent.parent
LINE = re.compile(r"^profile: *\w+", re.MULTILINE)


def set_profile(name: str) -> None:
    """Write the profile into params.yaml. Raises UserError if there is no such profile."""
    if name not in PROFILES:
        raise UserError(f"PROFILE={name} is not one of {', '.join(PROFILES)}.")
    path = ROOT / "params.yaml"
    text = path.read_text()
    changed = LINE.sub(f"profile: {name}", text, count=1)
    if changed != text:
        path.write_text(changed)
        print(
            f"params.yaml now says profile: {name}. `git checkout params.yaml dvc.lock metrics` "
            "and `dvc checkout` restore the committed state."
        )


def current_profile() -> str:
    return read_params(ROOT / "params.yaml", keys=()).profile


if __name__ == "__main__":
    try:
        set_profile(sys.argv[1])
    except UserError as error:
        sys.exit(f"make: {error}")
