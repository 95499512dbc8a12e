"""The commands and names in README.md, CONTRIBUTING.md and docs/, for the tests that check them."""

import re
import shlex
from pathlib import Path

from tests.conftest import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("dvc", "make", "python -m", "crawl2cart", "torchrun", "accelerate", "transformers")
# What needs a network, a card, servers or minutes is run by a test of its own, or by hand.
RUN_ELSEWHERE = {
    r"source=commoncrawl|--latest": "tests/integration/test_download.py",
    r"profile=gpu|PROFILE=gpu": "tests/unit/core/test_machine.py",
    r"^dvc (remote|push|pull|config)|--pull": "tests/integration/test_remote.py",
    r"engine=ray|^ray |torchrun|^export|^dvc commit": "tests/integration/test_hosts.py",
    r"^accelerate": "tests/integration/test_processes.py",
    r"^transformers serve|http://127\.0\.0\.1:8000": "tests/integration/test_agent_servers.py",
    r"^crawl2cart|^make (demo|chat)": "tests/unit/demo",
    r"^make|^rm -f \.dvc/tmp": "tests/unit/tools",
    r"tools\.render_docs": "tests/unit/test_docs.py",
    r"tools\.publish": "tests/unit/report/test_publish.py",
    r"tools\.accept": "tests/unit/tools",
    r"^dvc --wait-for-lock": "tests/unit/tools",
    r"data/store|^head": "tests/integration/test_readme.py",
    # By hand: minutes of a machine that does nothing else.
    r"^python -m benchmarks\.": "benchmarks",
}


def inline_code(path: Path) -> list[str]:
    """What stands between backticks, outside of code blocks."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def blocks(path: Path) -> list[str]:
    """The commands of the blocks marked `sh`, without the remarks behind them."""
    found = re.findall(r"^```sh\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return [line.partition("  # ")[0].strip() for block in found for line in block.splitlines()]


def commands(path: Path) -> list[str]:
    """Every command of a document, in code blocks and between backticks."""
    inline = [code for code in inline_code(path) if re.match(rf"(?:{'|'.join(PROGRAMS)}) \S", code)]
    return sorted({*blocks(path), *inline})


def all_commands() -> list[str]:
    return sorted({command for path in DOCUMENTS for command in commands(path)})


def elsewhere(command: str) -> str | None:
    """The test that runs a command, None for those that test_readme.py runs as they stand."""
    return next((test for rule, test in RUN_ELSEWHERE.items() if re.search(rule, command)), None)


def overrides(command: str) -> list[str]:
    """The values that a command sets with `-S`."""
    words = shlex.split(command)
    return [value for word, value in zip(words, words[1:], strict=False) if word == "-S"]
