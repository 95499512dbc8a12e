"""The graph and the code say the same: dependencies against imports, parameters against reads, outs against .gitignore."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from crawl2cart.core.dvc_yaml import Definition, definitions
from crawl2cart.core.params import read_params
from tests.conftest import ROOT

DVC = ROOT / ".venv" / "bin" / "dvc"
GRAPH = definitions(ROOT, "cpu")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_file(name: str) -> Path | None:
    """The file of a module of this project, None for any other."""
    path = ROOT / name.replace(".", "/")
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def nodes(path: Path, at_once: bool) -> Iterator[ast.AST]:
    """What a file is made of; at_once: but for the insides of functions, which run when they are called."""
    todo: list[ast.AST] = [tree(path)]
    while todo:
        node = todo.pop()
        yield node
        if not (at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)


def imports(path: Path, at_once: bool = False) -> set[Path]:
    """Files of this project that a file imports itself; at_once: as soon as it is imported."""
    found = set()
    for node in nodes(path, at_once):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {file for name in names if (file := module_file(name)) and file.stat().st_size}
    return found


def reachable(path: Path, at_once: bool = False) -> set[Path]:
    """All files of this project that run when a stage runs; at_once: that do so whatever its parameters are."""
    seen, todo = set(), [path]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += imports(file, at_once)
    return seen


def entry(definition: Definition) -> Path:
    return ROOT / "stages" / f"{definition.name.split('@')[0]}.py"


def covered(file: Path, dependencies: tuple[str, ...]) -> bool:
    return any(file == ROOT / dep or (ROOT / dep) in file.parents for dep in dependencies)


@pytest.mark.parametrize("name", GRAPH)
def test_every_imported_module_is_a_dependency(name):
    stage = GRAPH[name]
    missing = [
        str(file.relative_to(ROOT))
        for file in reachable(entry(stage))
        if not covered(file, stage.deps)
    ]
    assert not missing, f"{name} imports {missing}, which dvc.yaml does not list"


@pytest.mark.parametrize("name", GRAPH)
def test_every_package_among_the_dependencies_is_imported(name):
    stage = GRAPH[name]
    used = reachable(entry(stage))
    code = [dep for dep in stage.deps if dep.startswith(("stages/", "crawl2cart/"))]
    idle = [dep for dep in code if not any(covered(file, (dep,)) for file in used)]
    assert not idle, f"{name} lists {idle} and imports nothing of it"


@pytest.mark.parametrize("name", GRAPH)
def test_every_listed_parameter_is_read(name):
    """Reading an unlisted one raises by itself; here each key under a listed section must occur as an attribute."""
    stage = GRAPH[name]
    if any(
        isinstance(node, ast.Attribute) and node.attr == "param_values"
        for node in ast.walk(tree(entry(stage)))
    ):
        return  # it reads them all, to print them
    attributes = {
        node.attr
        for file in reachable(entry(stage))
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute)
    }
    texts = {
        node.value
        for file in reachable(entry(stage))
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    params = read_params(ROOT / "params.yaml")

    def leaves(value: object, key: str) -> list[str]:
        return (
            [leaf for inner in value for leaf in leaves(value[inner], inner)]
            if isinstance(value, dict)
            else [key]
        )

    unread = [
        leaf
        for key in stage.params
        for leaf in leaves(params.get(key), key.split(".")[-1])
        if leaf not in attributes and leaf not in texts
    ]
    assert not unread, f"{name} lists {unread} and reads none of them"


PATH = re.compile(r"(?:data|models|metrics)(?:/[\w.*-]+)+")


def paths_in(path: Path) -> set[str]:
    """The paths below data/, models/ and metrics/ that a file of ours has as texts, `*` for what an f-string fills in."""
    found, inside = set(), set()
    for node in ast.walk(tree(path)):  # an f-string comes before its parts
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                part.value if isinstance(part, ast.Constant) else "*" for part in node.values
            )
            inside |= {id(part) for part in node.values}
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            text = node.value
        else:
            continue
        found |= {text} if PATH.fullmatch(text) else set()
    return found


def lies_in(path: str, listed: str) -> bool:
    """Whether a path, which may hold `*`, means something that is listed or lies in a listed folder."""
    pairs = list(zip(listed.split("/"), path.split("/"), strict=False))
    return len(pairs) == listed.count("/") + 1 and all(
        fnmatchcase(word, pattern) for word, pattern in pairs
    )


def path_faults(paths: set[str], deps: tuple[str, ...], outs: tuple[str, ...]) -> list[str]:
    """Paths in the code that are not listed, and listed data that no path in the code leads to."""
    faults = [
        f"{path} is not listed"
        for path in sorted(paths)
        if not any(lies_in(path, listed) for listed in deps + outs)
    ]
    return faults + [
        f"{dep} is not read"
        for dep in deps
        if PATH.fullmatch(dep)
        and not any(lies_in(path, dep) or dep.startswith(f"{path}/") for path in paths)
    ]


def named_by_parameters(stage: Definition) -> set[str]:
    """The paths below data/, models/ and metrics/ that are values of the stage's parameters."""
    params = read_params(ROOT / "params.yaml")
    sections = [params.get(key) for key in stage.params]
    values = [
        value
        for section in sections
        for value in (section.values() if isinstance(section, dict) else [section])
    ]
    return {value for value in values if isinstance(value, str) and PATH.fullmatch(value)}


@pytest.mark.parametrize("name", GRAPH)
def test_every_path_in_the_code_is_listed_and_every_listed_one_is_read(name):
    """What a stage really opens is heard by tests/integration/test_graph.py."""
    stage = GRAPH[name]
    paths = set().union(*map(paths_in, reachable(entry(stage))), named_by_parameters(stage))
    assert not path_faults(paths, stage.deps, stage.outs), name


def test_a_path_that_is_not_listed_and_one_that_is_not_read_are_found(tmp_path):
    (tmp_path / "stage.py").write_text(
        '"""in data/queries/README.md"""\nread(f"models/{name}/samples.json")\nread("data/raw")\n'
        'raise UserError("data/store/x.json is missing")\n'
    )
    paths = paths_in(tmp_path / "stage.py")
    assert paths == {"models/*/samples.json", "data/raw"}
    assert path_faults(paths, ("models/gru", "stages/nn"), ("data/raw",)) == []
    assert path_faults(paths, ("models/gru/config.json",), ()) == [
        "data/raw is not listed",
        "models/*/samples.json is not listed",
        "models/gru/config.json is not read",
    ]


@pytest.mark.parametrize("name", GRAPH)
def test_every_template_among_the_dependencies_is_named_in_the_code(name):
    texts = {
        node.value
        for file in reachable(entry(GRAPH[name]))
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    templates = {
        Path(dep).name
        for dep in GRAPH[name].deps
        if dep.startswith("crawl2cart/") and Path(dep).suffix in (".jinja", ".j2")
    }
    assert templates <= texts


def test_every_stage_says_what_it_does():
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    for name, stage in stages.items():
        assert len(stage["desc"].split()) >= 5, name
        docstring = ast.get_docstring(tree(ROOT / "stages" / f"{name}.py"))
        assert "\nin   " in docstring, name
        assert "\nout  " in docstring, name
        for out in (*GRAPH.get(name, GRAPH.get(f"{name}@mlp")).outs,):
            assert out.split("/")[0] in docstring, f"{name}: the docstring does not name {out}"


def test_no_two_stages_write_one_file_and_no_input_lies_inside_an_out():
    outs = [out for stage in GRAPH.values() for out in stage.outs]
    assert len(outs) == len(set(outs))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    metrics = {out for out in outs if out.startswith("metrics/") and not out.endswith(".html")}
    for file in tracked:
        assert not any(file == out or file.startswith(out + "/") for out in set(outs) - metrics), (
            file
        )


def test_every_large_out_is_ignored_by_git():
    for stage in GRAPH.values():
        for out in stage.outs:
            kept = out.startswith("metrics/") and out not in (
                "metrics/report.html",
                "metrics/cards",
            )
            ignored = (
                not subprocess.run(["git", "check-ignore", "-q", f"{out}/x"], cwd=ROOT).returncode
                or not subprocess.run(["git", "check-ignore", "-q", out], cwd=ROOT).returncode
            )
            assert ignored != kept, out


def test_no_module_takes_the_name_of_a_standard_one():
    """Run as a script it would shadow it: a script named copy.py once broke `import torch`."""
    for folder in ("stages", "crawl2cart", "tools", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names, path


# Which packages of the library may import which others.
ALLOWED = {
    "core": set(),
    "crawl": {"core"},
    "lm": {"core"},
    "shop": {"core", "lm"},
    "agent": {"core", "lm", "shop"},
    "dialogues": {"core", "lm", "shop", "agent"},
    "preferences": {"core", "lm", "shop", "agent", "dialogues"},
    "evaluation": {"core", "lm", "shop", "agent", "dialogues", "preferences"},
    "router": {"core", "lm", "shop", "agent", "dialogues"},
    "report": {"core"},
    "demo": {"core", "lm", "shop", "agent", "dialogues", "router"},
}


def test_dependencies_of_the_library_point_down():
    library = ROOT / "crawl2cart"
    assert ALLOWED.keys() == {
        path.name for path in library.iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    for package, allowed in ALLOWED.items():
        for file in (library / package).rglob("*.py"):
            used = {
                path.relative_to(library).parts[0]
                for path in imports(file)
                if library in path.parents
            } - {package}
            assert used <= allowed, f"{file.relative_to(ROOT)} imports {used - allowed}"
            assert all(library in path.parents for path in imports(file)), (
                f"{file} imports from outside of the library"
            )


def test_stages_import_no_other_stage():
    entries = {entry(stage) for stage in GRAPH.values()}
    for path in entries:
        assert not imports(path) & entries, path


def test_dvc_reads_the_graph():
    for command, word in (
        (["stage", "list", "--name-only"], "pretrain@gpt_oss"),
        (["dag"], "pretrain@gru"),
        (["status"], ""),
    ):
        said = subprocess.run([DVC, *command], cwd=ROOT, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        assert word in said.stdout


def test_dvc_tells_nobody():
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text()
