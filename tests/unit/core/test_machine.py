"""What a profile needs is compared with the machine before anything starts, and what lacks is said in sentences."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

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
without_a_card = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")


def hub(answer: tuple[int, dict[str, str]]) -> type[BaseHTTPRequestHandler]:
    """A hub that gives one answer to whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            body = b'{"id": "openai/gpt-oss-20b", "sha": "' + REVISION.encode() + b'"}'
            self.send_response(answer[0])
            for name, value in answer[1].items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


def asked(endpoint: str, folder, **more: str) -> str:
    """What hub_fault says of the base model, in a process of its own: huggingface_hub reads its settings when it is imported."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = free | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder)} | more
    code = (
        f"from crawl2cart.core.machine import hub_fault; print(hub_fault({MODEL!r}, {REVISION!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((200, {}), "None"),
        (
            (404, {"X-Error-Code": "RevisionNotFound"}),
            f"has no revision {REVISION} of {MODEL}. Correct midtrain.revision",
        ),
        (
            (404, {"X-Error-Code": "RepoNotFound"}),
            f"shows no {MODEL} to you. Correct midtrain.base_model, or set HF_TOKEN",
        ),
        ((503, {}), f"does not give {MODEL} (HfHubHTTPError)"),
    ],
)
def test_what_the_hub_answers_is_said_in_words(tmp_path, answer, sentence):
    with listening(hub(answer)) as address:
        assert sentence in asked(address, tmp_path)


def test_a_hub_that_is_not_there_and_an_offline_machine_are_told_apart(tmp_path):
    assert f"does not give {MODEL} (ConnectError)" in asked("http://127.0.0.1:9", tmp_path)
    assert f"is not in {tmp_path}/hub and HF_HUB_OFFLINE is set" in asked(
        "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1"
    )


def test_a_base_model_in_the_cache_needs_no_hub(tmp_path):
    folder = tmp_path / "hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    for name in ("config.json", "one.safetensors"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    )
    assert "does not give" in asked("http://127.0.0.1:9", tmp_path), "one of two files is missing"
    (folder / "two.safetensors").write_text("")
    assert asked("http://127.0.0.1:9", tmp_path) == "None\n"


def test_a_crawl_that_can_not_be_had_is_named():
    assert (
        "http://127.0.0.1:9/crawl-data/CC-MAIN-2024-51/warc.paths.gz can not be had"
        in machine.crawl_fault("http://127.0.0.1:9/", "CC-MAIN-2024-51")
    )
    assert machine.crawl_fault("s3://commoncrawl/", "CC-MAIN-2024-51") is None


def test_too_little_memory_and_disk_are_told_with_what_is_there(tmp_path):
    small = GPU.model_copy(
        update={
            "device": "cpu",
            "midtrain": PARAMS.profiles.cpu.midtrain,
            "download": PARAMS.profiles.cpu.download,
        }
    )
    more = GPU.needs.model_copy(update={"memory_gib": 10**5, "disk_gib": 10**6})
    memory, disk = machine.faults(PARAMS, small.model_copy(update={"needs": more}), tmp_path)
    assert (
        f"has {psutil.virtual_memory().total / 2**30:.1f} GiB of memory, 100000 GiB are needed"
        in memory
    )
    assert "1000000 GiB are needed" in disk and "cache.type hardlink" in disk


def test_results_on_the_disk_count_as_room_and_a_link_only_once(tmp_path):
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    with (tmp_path / "data" / "raw" / "a").open("wb") as file:
        file.truncate(2**29)
    os.link(tmp_path / "data" / "raw" / "a", tmp_path / ".cache" / "a")
    assert machine.held_gib(tmp_path) == 0.5


@without_a_card
def test_the_gpu_profile_stops_in_words_before_its_first_stage(tmp_path):
    """Whether one asks (make check) or DVC starts a stage; `make repro` looks by the same function."""
    project = copy_project(tmp_path / "project", "gpu")
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    params = project / "params.yaml"
    params.write_text(
        params.read_text().replace(
            "base: https://data.commoncrawl.org/", "base: http://127.0.0.1:9/"
        )
    )

    def said(*words: str) -> str:
        run = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 1, run.stdout + run.stderr
        assert "Traceback" not in run.stderr
        return run.stdout + run.stderr

    for words in (["tools.check", "gpu"], ["stages.download"]):
        text = said(*words)
        for sentence in (
            "torch finds no CUDA device",
            f"does not give {MODEL}",
            "warc.paths.gz can not be had",
        ):
            assert sentence in text, (words, text)
    assert not (project / "data" / "raw").exists() and not (project / "data" / "sft").exists()


def test_the_check_estimates_every_stage():
    found = needs(PARAMS, GPU)
    assert [need.stage for need in found] == list(definitions(ROOT, "gpu"))
    assert all(need.minutes > 0 for need in found)
    assert sum(need.minutes for need in found) < GPU.needs.minutes
    assert max(need.card for need in found) <= GPU.needs.card_gib <= 80e9 / 2**30 + 5
    kept = sum(need.disk for need in found)
    assert 2 * kept + machine.HUB_GIB < GPU.needs.disk_gib, "DVC keeps a second copy of what stays"


# The 124M-class model of the README, as changes to the profile's mixture.
DENSE = {"num_experts": 1, "experts_per_token": 1, "intermediate_size": 2048, "num_kv_heads": 12}


@pytest.mark.parametrize(
    ("changes", "vocabulary", "whole", "active"),
    [({}, 32_768, 409e6, 154e6), (DENSE, 50_304, 163e6, 163e6)],
)
def test_the_gpu_models_have_the_sizes_that_they_are_named_after(
    changes, vocabulary, whole, active
):
    """With the vocabularies of the models that they are compared with; the README says what they have with 4,096 ranks. GPT-2's
    124M counts its tied head once, which here are two tables: 163M - 50,304 · 768 = 124M."""
    with torch.device("meta"):
        model = MODELS["gpt_oss"](
            GPU.models.gpt_oss.model_dump()
            | changes
            | {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0},
            vocabulary,
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(
        whole, rel=0.02
    )
    assert model.active_parameters() == pytest.approx(active, rel=0.02)
    assert {
        name: (size["width"], size["layers"])
        for name, size in GPU.models.model_dump().items()
        if "steps_back" in size
    } == dict.fromkeys(("rnn", "lstm", "gru"), (1024, 2))


def test_the_base_model_is_pinned_to_a_commit():
    assert (GPU.dtype, MODEL) == ("bfloat16", "openai/gpt-oss-20b")
    assert len(REVISION) == 40 and int(REVISION, 16)
