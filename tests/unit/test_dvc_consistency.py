"""dvc.yaml and the code agree: deps and imports, parameters and reads, outs and .gitignore."""

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
from crawl2cart.core.params import read_params, section_modules
from tests.conftest import ROOT, dvc

GRAPH = definitions(ROOT, "cpu")
PARAMS = read_params(ROOT / "params.yaml")
every_stage = pytest.mark.parametrize("name", GRAPH)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_file(name: str) -> Path | None:
    """Return the file of a module of this project, None for any other module."""
    path = ROOT / name.replace(".", "/")
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def nodes(path: Path, at_once: bool) -> Iterator[ast.AST]:
    """Yield a file's syntax nodes. at_once: without the insides of functions, which run later."""
    todo: list[ast.AST] = [tree(path)]
    while todo:
        node = todo.pop()
        yield node
        if not (at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)


def imports(path: Path, at_once: bool = False) -> set[Path]:
    """Return the project's files that a file imports. at_once: those imported with the file."""
    files = set()
    for node in nodes(path, at_once):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        files |= {file for name in names if (file := module_file(name)) and file.stat().st_size}
    return files


def closure(files: set[Path], at_once: bool) -> set[Path]:
    """Return the files and all that they import, directly or not."""
    seen, todo = set(), list(files)
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += imports(file, at_once)
    return seen


def entry(stage: Definition) -> Path:
    return ROOT / "stages" / f"{stage.name.split('@')[0]}.py"


@cache
def reachable(stage: Definition, at_once: bool = False) -> set[Path]:
    """Return the project's files that a stage may run. at_once: that it runs with any parameters.

    crawl2cart/core/params.py imports the models of the stage's sections by name.
    """
    models = {module_file(module) for module in section_modules(stage.params)}
    return closure({entry(stage)} | models, at_once)


def syntax(stage: Definition) -> list[ast.AST]:
    return [node for file in reachable(stage) for node in ast.walk(tree(file))]


def texts(stage: Definition) -> set[str]:
    """Return the strings in the code of a stage."""
    constants = (node.value for node in syntax(stage) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def covered(file: Path, deps: tuple[str, ...]) -> bool:
    return any(file == ROOT / dep or (ROOT / dep) in file.parents for dep in deps)


@every_stage
def test_every_imported_module_is_a_dependency(name):
    stage = GRAPH[name]
    missing = {str(file.relative_to(ROOT)) for file in reachable(stage)} - {
        str(file.relative_to(ROOT)) for file in reachable(stage) if covered(file, stage.deps)
    }
    assert not missing, f"{name} imports {missing}, which dvc.yaml does not list"


@every_stage
def test_every_package_among_the_dependencies_is_imported(name):
    stage = GRAPH[name]
    code = [dep for dep in stage.deps if dep.startswith(("stages/", "crawl2cart/"))]
    idle = [dep for dep in code if not any(covered(file, (dep,)) for file in reachable(stage))]
    assert not idle, f"{name} lists {idle} and imports nothing of it"


@every_stage
def test_every_listed_parameter_is_read(name):
    """Reading an unlisted one raises by itself; here each listed key must occur in the code."""
    stage = GRAPH[name]
    attributes = {node.attr for node in syntax(stage) if isinstance(node, ast.Attribute)}
    if any(
        isinstance(node, ast.Attribute) and node.attr == "param_values"
        for node in ast.walk(tree(entry(stage)))
    ):
        return  # it prints all of them

    def leaves(value: object, key: str) -> list[str]:
        if not isinstance(value, dict):
            return [key]
        return [leaf for inner in value for leaf in leaves(value[inner], inner)]

    listed = {leaf for key in stage.params for leaf in leaves(PARAMS.get(key), key.split(".")[-1])}
    unread = listed - attributes - texts(stage)
    assert not unread, f"{name} lists {unread} and reads none of them"


PATH = re.compile(r"(?:data|models|metrics)(?:/[\w.*-]+)+")


@cache
def paths_in(path: Path) -> set[str]:
    """Return the paths below data/, models/ and metrics/ in the strings of a file.

    `*` stands for what an f-string fills in.
    """
    paths, parts = set(), set()
    for node in ast.walk(tree(path)):  # an f-string comes before its parts
        if isinstance(node, ast.JoinedStr):
            values = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
            text = "".join(values)
            parts |= {id(part) for part in node.values}
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ):
            text = node.value
        else:
            continue
        paths |= {text} if PATH.fullmatch(text) else set()
    return paths


def lies_in(path: str, listed: str) -> bool:
    """Return whether a path, which may hold `*`, can be a listed path or lie inside it."""
    pairs = list(zip(listed.split("/"), path.split("/"), strict=False))
    return len(pairs) == listed.count("/") + 1 and all(
        fnmatchcase(name, pattern) for name, pattern in pairs
    )


def path_faults(paths: set[str], deps: tuple[str, ...], outs: tuple[str, ...]) -> list[str]:
    """Return paths in the code that are not listed, and listed data that no path leads to."""
    unlisted = [
        f"{path} is not listed"
        for path in sorted(paths)
        if not any(lies_in(path, listed) for listed in deps + outs)
    ]
    return unlisted + [
        f"{dep} is not read"
        for dep in deps
        if PATH.fullmatch(dep)
        and not any(lies_in(path, dep) or dep.startswith(f"{path}/") for path in paths)
    ]


def paths_in_parameters(stage: Definition) -> set[str]:
    """Return the paths below data/, models/ and metrics/ among the stage's parameters."""
    sections = [PARAMS.get(key) for key in stage.params]
    values = [
        value
        for section in sections
        for value in (section.values() if isinstance(section, dict) else [section])
    ]
    return {value for value in values if isinstance(value, str) and PATH.fullmatch(value)}


@every_stage
def test_every_path_in_the_code_is_listed_and_every_listed_one_is_read(name):
    """tests/integration/test_graph.py traces which files a stage opens."""
    stage = GRAPH[name]
    paths = paths_in_parameters(stage).union(*map(paths_in, reachable(stage)))
    assert not path_faults(paths, stage.deps, stage.outs), name


def test_an_unlisted_path_and_an_unread_one_are_found(tmp_path):
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


@every_stage
def test_every_template_among_the_dependencies_is_named_in_the_code(name):
    templates = {
        Path(dep).name
        for dep in GRAPH[name].deps
        if dep.startswith("crawl2cart/") and Path(dep).suffix in (".jinja", ".j2")
    }
    assert templates <= texts(GRAPH[name])


@every_stage
def test_the_docstring_names_what_comes_in_and_out(name):
    docstring = ast.get_docstring(tree(entry(GRAPH[name])))
    assert "\nin   " in docstring and "\nout  " in docstring
    for out in GRAPH[name].outs:
        assert out.split("/")[0] in docstring, out


def test_outs_are_cached_or_metrics_or_plots():
    """DVC restores no stage from its run-cache that has an uncached out of another kind."""
    for name, stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        assert all(isinstance(out, str) for out in stage.get("outs", [])), name


def test_no_two_stages_write_one_file_and_no_input_lies_inside_an_out():
    outs = [out for stage in GRAPH.values() for out in stage.outs]
    assert len(outs) == len(set(outs))
    cached = {out for out in outs if not is_kept_in_git(out)}
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for file in listing.stdout.splitlines():
        assert not any(file == out or file.startswith(f"{out}/") for out in cached), file


def is_kept_in_git(out: str) -> bool:
    return out.startswith("metrics/") and out not in ("metrics/report.html", "metrics/cards")


def test_git_ignores_exactly_the_cached_outs():
    outs = [out for stage in GRAPH.values() for out in stage.outs]
    paths = [path for out in outs for path in (out, f"{out}/x")]
    command = ["git", "check-ignore", *paths]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    ignored = {path.removesuffix("/x") for path in run.stdout.splitlines()}
    assert ignored == {out for out in outs if not is_kept_in_git(out)}


def test_no_module_takes_the_name_of_a_standard_one():
    """A script would shadow it: a script named copy.py once broke `import torch`."""
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
    packages = {path.parent.name for path in library.glob("*/__init__.py")}
    assert ALLOWED.keys() == packages
    for package, allowed in ALLOWED.items():
        for file in (library / package).rglob("*.py"):
            assert all(library in path.parents for path in imports(file)), (
                f"{file} imports from outside of the library"
            )
            used = {path.relative_to(library).parts[0] for path in imports(file)}
            assert used <= allowed | {package}, file


def test_stages_import_no_other_stage():
    entries = {entry(stage) for stage in GRAPH.values()}
    for path in entries:
        assert not imports(path) & entries, path


def test_dvc_reads_the_graph_and_sends_nothing():
    assert "pretrain@gpt_oss" in dvc(ROOT, "stage", "list", "--name-only")
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text()
