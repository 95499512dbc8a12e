"""Parameters: bad ones are named before anything runs, and a stage sees only what DVC watches."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.core.errors import UserError
from crawl2cart.core.params import (
    PROFILE_SECTIONS,
    SECTIONS,
    Listed,
    current_name,
    read_params,
    section_modules,
)
from crawl2cart.core.renamed_params import RENAMED
from tests.conftest import ROOT

PARAMS = ROOT / "params.yaml"


def changed_params(folder: Path, old: str, new: str) -> Path:
    text = PARAMS.read_text()
    assert old in text
    path = folder / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        ("min_words: 50", "min_wrods: 50", "filter.min_wrods: there is no such parameter"),
        ("min_words: 50", "min_wrods: 50", "filter.min_words: this parameter is missing"),
        ("seed: 7", "seed: seven", "seed: input should be a valid integer, but it is 'seven'"),
        ("validation_share: 0.08", "validation_share: 1.5", "filter.validation_share"),
        ("source: embedded", "source: internet", "profiles.cpu.download.source"),
        ("threads: 2", "threads: 3", "profiles.cpu: 2 processes cannot share 3 threads"),
        ("num_processes: 1", "num_processes: 2", "profiles.gpu: `num_processes` above 1"),
        ("profile: cpu", "profile: gpuu", "profile: input should be 'cpu', 'smoke' or 'gpu'"),
        ("files: profile", "files: 9-3", "download.files"),
        ("learning_rate: 0.0032", "learning_rate: .nan", "pretrain.mlp.learning_rate"),
    ],
)
def test_a_bad_parameter_is_named(tmp_path, old, new, fact):
    with pytest.raises(UserError, match=re.escape(fact)):
        read_params(changed_params(tmp_path, old, new))


def test_a_stage_stops_at_a_bad_parameter_before_anything_is_written(tmp_path):
    changed_params(tmp_path, "vocab_size: 4096", "vocab_sise: 4096")
    for name in ("dvc.yaml", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "stages.encode"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "encode.vocab_sise" in run.stderr and "Traceback" not in run.stderr
    made = {path.name for path in tmp_path.iterdir()} - {"dvc.yaml", "params.yaml", "stages"}
    assert made == {"runs"}  # its lock


def test_only_the_sections_of_listed_keys_are_checked(tmp_path):
    path = changed_params(tmp_path, "min_words: 50", "min_words: many")
    assert read_params(path, ("seed", "encode")).encode.vocab_size == 4096
    with pytest.raises(UserError, match=r"filter\.min_words"):
        read_params(path, ("filter.min_words",))


def test_sections_are_imported_from_the_packages_that_own_them():
    assert section_modules(["filter"]) == {"crawl2cart.crawl.params"}
    assert section_modules(["seed", "profiles.cpu.device"]) == set()
    assert section_modules(["profiles.cpu.models.gru"]) == {"crawl2cart.lm.params"}
    everything = [*SECTIONS, "profiles.cpu"]
    assert len(section_modules(everything)) == len(
        {place.split(":")[0] for place in [*SECTIONS.values(), *PROFILE_SECTIONS.values()]}
    )


def test_a_stage_cannot_read_what_dvc_does_not_watch():
    params = read_params(PARAMS)
    listed = Listed(params, ("seed", "pretrain.gru", f"profiles.{params.profile}.threads"))
    assert listed.pretrain.gru.learning_rate > 0
    assert listed.profile.threads >= 1
    for read in (
        lambda: listed.pretrain.lstm,
        lambda: listed.filter,
        lambda: listed.profile.pretrain,
    ):
        with pytest.raises(AttributeError, match="not listed"):
            read()


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("+filter.near_bands=20", "filter.minhash.bands"),
        ("+midtrain.reply_weight=4", "midtrain.loss_weights.reply"),
        ("+profiles.gpu.sft.batch=8", "profiles.gpu.sft.batch_size"),
        ("+profiles.cpu.models.mlp.window=8", "profiles.cpu.models.mlp.context_size"),
        ("+profiles.smoke.processes=2", "profiles.smoke.num_processes"),
    ],
)
def test_an_old_name_gets_an_error_with_the_new_one(tmp_path, override, new):
    path = changed_params(tmp_path, "seed: 7", "seed: 7")
    apply_overrides(path, [override])  # `dvc exp run -S`
    old = override.lstrip("+").split("=")[0]
    with pytest.raises(UserError, match=f"{re.escape(old)}: .* {re.escape(new)}"):
        read_params(path)


def test_every_new_name_is_a_parameter():
    params = read_params(PARAMS)
    for section, names in RENAMED.items():
        for old in names:
            key = f"{section}.{old}".replace("*", "cpu")
            params.get(current_name(key))
            assert current_name(key) != key
    assert current_name("filter.min_words") == "filter.min_words"


@pytest.mark.parametrize(
    "override",
    [
        "seed=8",
        "filter.validation_share=0.1",
        "pretrain.gru.learning_rate=1e-5",
        "download.urls='example.org, *.example.org'",
        "profiles.gpu.midtrain.max_steps=3",
        "demo.log_text=true",
    ],
)
def test_an_override_changes_one_line(tmp_path, override):
    """params.yaml is formatted as DVC writes it."""
    path = changed_params(tmp_path, "seed: 7", "seed: 7")
    apply_overrides(path, [override])
    before, after = (file.read_text().splitlines() for file in (PARAMS, path))
    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
    read_params(path)  # PyYAML would read DVC's 1e-05 as a text


def uncommented(text: str) -> list[str]:
    """Return sections and parameters of a params.yaml without a comment in the line above.

    Sections within a section may do without. A profile after the first has the keys of the first,
    and a parameter with the name of another in the same section of a profile means the same; so do
    the two sections of intent weights.
    """
    path, known, missing = [], set(), []
    lines = text.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if not (entry := re.match(r"( *)(\w+):(.*)", line)):
            continue
        path = [*path[: len(entry[1]) // 2], entry[2]]
        key = tuple(name.replace("train_intent_weights", "intent_weights") for name in path)
        if path[0] in ("profiles", "pretrain") and len(path) > 2:
            if path[0] == "profiles" and path[1] != "cpu":
                continue
            key = (path[0], path[2] if path[0] == "profiles" else "model", path[-1])
        if above.strip().startswith("#"):
            known.add(key)
        elif key not in known and (entry[3].strip() or len(path) == 1):
            missing.append(".".join(path))
    return missing


def test_every_parameter_has_a_comment_and_none_is_a_list():
    text = PARAMS.read_text()
    assert uncommented(text) == []
    assert uncommented("# one\na: 1\nb:\n  # two\n  c: 2\n  d: 3\n") == ["b", "b.d"]
    assert not re.search(r"^\s*- |: \[", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100


def test_profiles_have_the_same_keys():
    def keys(section: dict, prefix: str = "") -> set[str]:
        nested = {key for key, value in section.items() if isinstance(value, dict)}
        inner = (keys(section[key], f"{prefix}{key}.") for key in nested)
        return {prefix + key for key in section.keys() - nested}.union(*inner)

    profiles = YAML(typ="safe").load(PARAMS)["profiles"]
    assert len({frozenset(keys(profile)) for profile in profiles.values()}) == 1


def test_listed_parameters_exist():
    for profile in ("cpu", "smoke", "gpu"):
        params = read_params(PARAMS)
        for stage in definitions(ROOT, profile).values():
            for key in stage.params:
                params.get(key)
    with pytest.raises(UserError, match=r"filter\.no_such"):
        params.get("filter.no_such")
