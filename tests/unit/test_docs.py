"""The documents agree with the repository: generated parts, files, commands, metrics."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from crawl2cart.core.params import read_params
from tests.conftest import ROOT
from tests.documents import DOCUMENTS, all_commands, commands, elsewhere, inline_code, overrides
from tools.render_docs import documents, fill_parts

FOLDERS = (
    ".ci benchmarks crawl2cart data docs metrics models runs scale stages tests tools .cache .ckpt"
)
FILE = re.compile(rf"(?:{FOLDERS.replace(' ', '|').replace('.', '[.]')})/[\w./-]*")
SECTIONS = (
    "download filter encode pretrain build_sft midtrain sft build_prefs dpo router demo evaluate"
)
PARAMETER = re.compile(rf"(?:{SECTIONS.replace(' ', '|')})(?:\.[a-z_]+)+(?=$|[:=])")

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_generated_parts_are_those_of_metrics_and_data(path):
    text = path.read_text()
    assert fill_parts(text) == text, "run `python -m tools.render_docs`"


def test_the_readme_fits_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@document
def test_every_file_exists_or_is_an_output(path):
    for name in filter(FILE.fullmatch, inline_code(path)):
        check = ["git", "check-ignore", "-q", f"{name.rstrip('/')}/"]
        is_output = subprocess.run(check, cwd=ROOT).returncode == 0
        assert is_output or (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "path",
    [*DOCUMENTS, *sorted(ROOT.glob("data/**/README.md")), ROOT / "scale/README.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_link_leads_to_a_file(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


@document
def test_every_make_target_and_module_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(path):
        if target := re.match(r"make ([a-z-]+)", command):
            assert target[1] in targets, command
        if module := re.search(r"-m ((?:stages|crawl2cart|tools|benchmarks)[\w.]*)", command):
            assert importlib.util.find_spec(module[1]), command


@pytest.mark.parametrize("command", [c for c in all_commands() if overrides(c)])
def test_every_parameter_that_a_command_sets_exists_and_takes_the_value(command, tmp_path):
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    for override in overrides(command):
        read_params(params).get(override.partition("=")[0])
    apply_overrides(params, overrides(command))
    read_params(params)


@document
def test_every_parameter_exists(path):
    if path.name == "metrics.md":
        return  # metrics begin with the names of stages, too
    params = read_params(ROOT / "params.yaml")
    for code in inline_code(path):
        if (name := PARAMETER.match(code)) and not code.endswith(".json"):
            params.get(name[0])


def leaves(values: dict, above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for key, value in values.items():
        found |= leaves(value, (*above, key)) if isinstance(value, dict) else {(*above, key)}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "metrics").glob("*.json")), ids=lambda p: p.name)
def test_every_metric_is_defined(path):
    """By its name, its dotted name, or the name of a group whose keys are rules or languages."""
    text = (ROOT / "docs/metrics.md").read_text()
    section = (
        text.partition(f"## metrics/{path.name}")[2].partition("\n## ")[0]
        + (text.partition("**Turn metrics.**")[2].partition("\n## ")[0])
    )
    defined = {code.removesuffix(".*") for code in re.findall(r"`([^`\n]+)`", section)}
    for names in leaves(json.loads(path.read_text())):
        name = re.sub(r"_(?:low|high|n)$", "", names[-1])
        prefixes = {".".join(names[:end]) for end in range(1, len(names))}
        dotted = {".".join([*names[start:-1], name]) for start in range(len(names))}
        assert (dotted | prefixes) & defined, ".".join(names)


def test_every_command_is_run_by_a_test():
    for command in all_commands():
        test = elsewhere(command)
        assert test is None or (ROOT / test).exists(), command
