"""The stage build_sft with a teacher, as a process against a local server."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.servers.openai_server import Reply, completion

pytestmark = pytest.mark.slow


def run_stage(project: Path) -> dict[str, bytes]:
    process = subprocess.run(
        [project / ".venv/bin/python", "-m", "stages.build_sft"],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return {file.name: file.read_bytes() for file in (project / "data/sft").iterdir()}


def paraphrases(body: dict) -> bytes:
    """Answer with a good and a bad paraphrase of each numbered line."""
    lines = body["messages"][1]["content"].split("\n\n", 1)[1].split("\n")
    texts = [
        {"of": number, "text": text}
        for number, line in enumerate(lines, 1)
        for text in (f"erm so basically zzz {line.partition('. ')[2]} zzz", "no")
    ]
    return completion(json.dumps({"paraphrases": texts}))


def test_the_teacher_changes_training_alone(server, project):
    without = run_stage(project)
    assert not server.requests and "teacher" not in json.loads(without["card.json"])
    params = project / "params.yaml"
    text = params.read_text().replace("teacher: none", "teacher: openai")
    params.write_text(text.replace("teacher_dialogues: 200", "teacher_dialogues: 4"))
    server.answer = lambda body, key: Reply(
        paraphrases(body) if "response_format" in body else completion("I do not know.")
    )
    taught = run_stage(project)
    for name in ("validation.jsonl", "test.jsonl", "safety.jsonl", "lexicon.json"):
        assert taught[name] == without[name]
    assert b"zzz" in taught["train.jsonl"]
    counts = json.loads(taught["card.json"])["teacher"]
    assert counts["kept"]["wordings"] > 100 and counts["rejected"]["wordings: other slots"] > 50
    assert b"The teacher gpt-4.1" in taught["README.md"]
