"""A checkpoint and its card on their way to a hub, which a server on this machine plays."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pytest_httpserver import HTTPServer
from safetensors.numpy import save_file
from werkzeug import Request, Response

from crawl2cart.core.files import write_json
from tests.conftest import ROOT

TOKEN = "secret-token"
CARD = "---\nlicense: mit\n---\n\n# A model\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A project folder with a checkpoint and its card."""
    model = tmp_path / "models/dpo"
    (model / "adapter").mkdir(parents=True)
    (model / "adapter" / "adapter_config.json").write_text("{}")
    save_file({"w": np.zeros(2)}, model / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        write_json(model / name, {})
    (tmp_path / "metrics/cards").mkdir(parents=True)
    (tmp_path / "metrics/cards/dpo.md").write_text(CARD)
    return tmp_path


def publish(folder: Path, *words: str, endpoint: str = "http://127.0.0.1:9"):
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "tools.publish", "dpo", "somebody/agent", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | environment | {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN},
    )


def test_nothing_is_pushed_unless_asked(folder):
    process = publish(folder)
    assert process.returncode == 0 and "Nothing was pushed" in process.stdout
    assert "README.md" in process.stdout and "adapter" not in process.stdout


def test_a_missing_card_is_named(folder):
    (folder / "metrics/cards/dpo.md").unlink()
    process = publish(folder)
    assert process.returncode == 1 and "metrics/cards/dpo.md" in process.stderr


def test_a_checkpoint_arrives_with_its_card(folder, httpserver: HTTPServer):
    """The hub has those parts of Hugging Face's API that an upload uses."""
    files, address = {}, httpserver.url_for("/somebody/agent")

    def preupload(request: Request) -> Response:
        names = [file["path"] for file in request.get_json(force=True)["files"]]
        modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
        return Response(json.dumps({"files": modes}), content_type="application/json")

    def commit(request: Request) -> Response:
        for line in map(json.loads, request.data.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        answer = {"commitUrl": f"{address}/commit/abc", "commitOid": "abc", "success": True}
        return Response(json.dumps(answer | {"hookOutput": ""}), content_type="application/json")

    repository = "/api/models/somebody/agent"
    httpserver.expect_request("/api/repos/create").respond_with_json({"url": address})
    httpserver.expect_request(f"{repository}/preupload/main").respond_with_handler(preupload)
    httpserver.expect_request(f"{repository}/commit/main").respond_with_handler(commit)
    card_check = {"errors": [], "warnings": []}
    httpserver.expect_request("/api/validate-yaml").respond_with_json(card_check)

    process = publish(folder, "--push", endpoint=httpserver.url_for("").rstrip("/"))
    assert process.returncode == 0, process.stderr[-2000:]
    assert "commit/abc" in process.stdout
    assert files["README.md"].decode() == CARD
    assert set(files) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    posts = [request for request, _ in httpserver.log if request.method == "POST"]
    assert {request.headers["Authorization"] for request in posts} == {f"Bearer {TOKEN}"}
    (create,) = [request for request in posts if request.path == "/api/repos/create"]
    assert b"private" in create.data


def test_a_refusal_of_the_hub_is_a_readable_error(folder, httpserver: HTTPServer):
    refusal = {"error": "no such token"}
    httpserver.expect_request("/api/repos/create").respond_with_json(refusal, status=401)
    process = publish(folder, "--push", endpoint=httpserver.url_for("").rstrip("/"))
    assert process.returncode == 1
    assert "somebody/agent" in process.stderr and "HF_TOKEN" in process.stderr
    assert TOKEN not in process.stderr + process.stdout and "Traceback" not in process.stderr
