"""The shop's vocabulary where graders read it by default."""

from pathlib import Path

import pytest

from crawl2cart.core.files import write_json
from tests import recorded_dialogues as recorded


@pytest.fixture
def vocabulary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has data/sft/lexicon.json."""
    (tmp_path / "data/sft").mkdir(parents=True)
    write_json(tmp_path / "data/sft/lexicon.json", recorded.vocabulary().to_dict())
    monkeypatch.chdir(tmp_path)
