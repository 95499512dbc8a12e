"""What a profile needs is compared with the machine before anything starts."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
import torch

from crawl2cart.core import machine
from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.params import read_params
from crawl2cart.lm.formats.save import MODELS
from tests.conftest import ROOT, copy_project
from tests.servers.local_server import listening
from tools.estimate_resources import needs

PARAMS = read_params(ROOT / "params.yaml")
GPU = PARAMS.profiles.gpu
MODEL, REVISION = GPU.midtrain.base_model, GPU.midtrain.revision
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port
without_a_card = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")


def hub(status: int, headers: dict[str, str]) -> type[BaseHTTPRequestHandler]:
    """A hub that gives the same answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            body = b'{"id": "openai/gpt-oss-20b", "sha": "' + REVISION.encode() + b'"}'
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


def hub_fault(endpoint: str, home: Path, **settings: str) -> str:
    """Run `hub_fault` in a new process, since huggingface_hub reads its settings once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)} | settings
    code = f"from crawl2cart.core import machine; print(machine.hub_fault({MODEL!r}, {REVISION!r}))"
    command = [sys.executable, "-c", code]
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    return subprocess.run(command, check=True, **options).stdout


@pytest.mark.parametrize(
    ("status", "headers", "fact"),
    [
        (200, {}, "None"),
        (404, {"X-Error-Code": "RevisionNotFound"}, f"has no revision {REVISION} of {MODEL}"),
        (404, {"X-Error-Code": "RepoNotFound"}, "HF_TOKEN"),
        (503, {}, f"does not give {MODEL} (HfHubHTTPError)"),
    ],
)
def test_the_answer_of_the_hub_is_explained(tmp_path, status, headers, fact):
    with listening(hub(status, headers)) as address:
        assert fact in hub_fault(address, tmp_path)


def test_an_unreachable_hub_and_an_offline_machine_are_told_apart(tmp_path):
    assert f"does not give {MODEL} (ConnectError)" in hub_fault(NOWHERE, tmp_path)
    offline = hub_fault(NOWHERE, tmp_path, HF_HUB_OFFLINE="1")
    assert f"is not in {tmp_path}/hub" in offline and "HF_HUB_OFFLINE" in offline


def test_a_base_model_in_the_cache_needs_no_hub(tmp_path):
    folder = tmp_path / "hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    for name in ("config.json", "one.safetensors"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )
    assert "does not give" in hub_fault(NOWHERE, tmp_path), "one of two files is missing"
    (folder / "two.safetensors").write_text("")
    assert hub_fault(NOWHERE, tmp_path) == "None\n"


def test_an_unreachable_crawl_is_named():
    crawl = "CC-MAIN-2024-51"
    fault = machine.crawl_fault(f"{NOWHERE}/", crawl)
    assert f"{NOWHERE}/crawl-data/{crawl}/warc.paths.gz" in fault
    assert machine.crawl_fault("s3://commoncrawl/", crawl) is None


def test_too_little_memory_and_disk_are_named_with_what_there_is(tmp_path):
    cpu = PARAMS.profiles.cpu
    requirements = cpu.requirements.model_copy(update={"memory_gib": 10**5, "disk_gib": 10**6})
    large = cpu.model_copy(update={"requirements": requirements})
    memory, disk = machine.faults(PARAMS, large, tmp_path)
    assert f"{psutil.virtual_memory().total / 2**30:.1f} GiB" in memory and "100000 GiB" in memory
    assert "1000000 GiB" in disk and "cache.type hardlink" in disk
    assert machine.faults(PARAMS, PARAMS.profiles.smoke, tmp_path) == []


def test_results_on_the_disk_count_as_room_and_a_hard_link_only_once(tmp_path):
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    with (tmp_path / "data" / "raw" / "a").open("wb") as file:
        file.truncate(2**29)
    os.link(tmp_path / "data" / "raw" / "a", tmp_path / ".cache" / "a")
    assert machine.held_gib(tmp_path) == 0.5


@without_a_card
def test_the_gpu_profile_stops_before_its_first_stage(tmp_path):
    """The first stage names all that is missing, as `make check` does."""
    project = copy_project(tmp_path / "project", "gpu")
    environment = os.environ | {"HF_ENDPOINT": NOWHERE, "HF_HOME": str(tmp_path)}
    params = project / "params.yaml"
    crawl = "base: https://data.commoncrawl.org/"
    assert crawl in params.read_text()
    params.write_text(params.read_text().replace(crawl, f"base: {NOWHERE}/"))
    command = [sys.executable, "-m", "stages.download"]
    options = {"cwd": project, "env": environment, "capture_output": True, "text": True}
    run = subprocess.run(command, **options)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    for fact in ("no CUDA device", f"does not give {MODEL}", "warc.paths.gz"):
        assert fact in run.stderr
    assert not (project / "data" / "raw").exists()


def test_every_stage_has_an_estimate_and_the_sums_fit_the_profile():
    estimates = needs(PARAMS, GPU)
    assert [need.stage for need in estimates] == list(definitions(ROOT, "gpu"))
    assert all(need.minutes > 0 for need in estimates)
    assert sum(need.minutes for need in estimates) < GPU.requirements.minutes
    cards = [need.card for need in estimates]
    assert max(cards) <= GPU.requirements.card_gib <= 80e9 / 2**30 + 5
    outs = sum(need.disk for need in estimates)
    assert 2 * outs + machine.HUB_GIB < GPU.requirements.disk_gib, "DVC keeps a second copy of outs"


# The 124M-class model, as changes to the profile's mixture of experts.
DENSE = {"num_experts": 1, "experts_per_token": 1, "intermediate_size": 2048, "num_kv_heads": 12}


@pytest.mark.parametrize(
    ("changes", "vocabulary", "total", "active"),
    [({}, 32_768, 409e6, 154e6), (DENSE, 50_304, 163e6, 163e6)],
)
def test_the_gpu_models_have_the_sizes_they_are_named_after(changes, vocabulary, total, active):
    """With the vocabularies of the models they are compared with.

    GPT-2's 124M counts its tied head once, which here is a second table: 163M - 50,304 · 768 =
    124M.
    """
    losses = {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}
    with torch.device("meta"):
        sizes = GPU.models.gpt_oss.model_dump()
        model = MODELS["gpt_oss"](sizes | changes | losses, vocabulary)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(total, rel=0.02)
    assert model.active_parameters() == pytest.approx(active, rel=0.02)


def test_the_base_model_is_pinned_to_a_commit():
    assert MODEL == "openai/gpt-oss-20b"
    assert len(REVISION) == 40 and int(REVISION, 16)
