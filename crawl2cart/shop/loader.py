"""Read a shop's folder: JSON, JSON lines, CSV and Markdown.

Every fault names the file, the line, the field, what is expected and what was found.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from crawl2cart.core.errors import UserError
from crawl2cart.shop.csv_tables import resolve, table_rows
from crawl2cart.shop.data_model import Department, Record, Section

# The shop whose texts serve a shop that has none of its own.
SHIPPED = Path(__file__).parents[2] / "data" / "store"
FORMATS = (".jsonl", ".csv")

Kind = TypeVar("Kind", bound=Record)


def read_text(path: Path) -> str:
    """Return a file's text without the byte order mark that spreadsheets write.

    Raises UserError if the file is missing or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: the line: expected UTF-8, found the byte {data[error.start]:#x}"
        ) from error


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object. Raises ValueError with the name of a key that stands twice.

    Python's parser would silently drop the first of its values.
    """
    counts = Counter(key for key, _ in pairs)
    if repeated := [key for key, count in counts.items() if count > 1]:
        raise ValueError(repeated[0])
    return dict(pairs)


def parse(text: str, kind: type[Kind], inside: str | None = None) -> Kind | list[tuple[int, str]]:
    """Return the record that a JSON text states, or its faults.

    A fault is a line of the text, and `field: expected …, found …`. inside: the text is the value
    of this field of the record.
    """
    whole = f'{{"{inside}": {text}}}' if inside else text
    try:
        json.loads(text, object_pairs_hook=unique_keys)
        return kind.model_validate_json(whole)
    except ValidationError as error:
        faults = []
        for path, fault in explain(error, kind):
            field = ".".join(map(str, path[bool(inside) :])) or "the line"
            faults.append((line_of(text, path, fault), f"{field}: {fault}"))
        return faults
    except json.JSONDecodeError as error:
        message = f"{error.msg[0].lower()}{error.msg[1:]} at column {error.colno}"
        return [(error.lineno, f"the line: expected JSON, but {message}")]
    except ValueError as error:
        key = str(error)
        return [(line_of(text, (key,), ""), f"{key}: expected once in a record, found twice")]


def line_of(text: str, path: tuple, fault: str) -> int:
    """Return the line of a JSON text on which the field at the end of the path stands.

    Of a missing field it is the line of the record around it.
    """
    place = 0
    for part in path[:-1] if fault.startswith("missing") else path:
        place = max(place, text.find(f'"{part}"', place))
    return text.count("\n", 0, place) + 1


def explain(error: ValidationError, kind: type[Record]) -> list[tuple[tuple, str]]:
    """Return for each fault the path of the field, what is expected and what stands there."""
    schema, faults = kind.model_json_schema(), {}
    for fault in error.errors():
        is_unknown = fault["type"] == "extra_forbidden"
        path, node = schema_node(fault["loc"][:-1] if is_unknown else fault["loc"], schema)
        if is_unknown:
            names = ", ".join(resolve(node, schema)["properties"])
            faults[*path, fault["loc"][-1]] = f"no field is called so; expected one of {names}"
        elif fault["type"] == "missing":
            faults[path] = f"missing; expected {expectation(node, schema)}"
        else:
            value = json.dumps(fault["input"], ensure_ascii=False, default=str)
            faults[path] = f"expected {expectation(node, schema)}, found {value}"
    return list(faults.items())


def schema_node(location: tuple, schema: dict) -> tuple[tuple, dict]:
    """Follow pydantic's location of a fault; return the path of the field and its schema."""
    path, node = (), schema
    for part in location:
        node = resolve(node, schema)
        if "anyOf" in node:
            break  # the rest of the location names the alternatives
        path += (part,)
        if isinstance(part, int):
            node = node.get("items")
        else:
            node = node.get("properties", {}).get(part, node.get("additionalProperties"))
    return path, node


LIMITS = {"exclusiveMinimum": "above", "minimum": "not below", "maximum": "not above"}
SIZES = {"minItems": "at least", "maxItems": "at most"}
TYPES = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}


def expectation(node: dict, schema: dict) -> str:
    """Return in words what a node of a JSON schema allows."""
    node = resolve(node, schema)
    if "description" in node and "properties" not in node:
        return node["description"]
    if "enum" in node or "const" in node:
        return "one of " + ", ".join(node.get("enum", [node.get("const")]))
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(expectation(one, schema) for one in node["anyOf"]))
    match node["type"]:
        case "string" if node.get("format") == "date":
            return "a date such as 2026-05-18"
        case "string":
            return "text, not empty" if "minLength" in node else "text"
        case "array":
            sizes = " and ".join(
                f"{word} {node[key]}" for key, word in SIZES.items() if key in node
            )
            return " ".join(
                ["a list of", *([sizes] if sizes else []), expectation(node["items"], schema)]
            )
        case "object":
            names = node.get("properties")
            return f"a record of {', '.join(names)}" if names is not None else "a record"
    limits = " and ".join(f"{word} {node[key]:g}" for key, word in LIMITS.items() if key in node)
    return f"{TYPES[node['type']]} {limits}".strip()


def files_of(path: Path) -> list[Path]:
    """Return the files of one kind of record, such as `customers`.

    They are `customers.jsonl`, or `customers.csv`, or all such files of the folder `customers`,
    sorted. Raises UserError if there is none, or if two of these exist: then one of them probably
    belongs to another shop.
    """
    files = [file for file in (path.with_suffix(suffix) for suffix in FORMATS) if file.is_file()]
    in_folder = sorted(file for file in path.glob("*") if file.suffix in FORMATS)
    base = path.with_suffix("")
    if len(files) + bool(in_folder) > 1:
        places = ", ".join(map(str, [*files, *([path] if in_folder else [])]))
        raise UserError(f"{base}: stands in more than one place ({places}); keep one of them")
    if not files and not in_folder:
        name = path.stem
        raise UserError(
            f"{base}: missing; expected {name}.jsonl, {name}.csv or a folder {name} of such files"
        )
    return files or in_folder


def own_or_shipped(folder: Path, name: str) -> Path:
    """Return the shop's own file of this name, or that of data/store.

    Raises UserError if neither exists.
    """
    file = folder / name if (folder / name).is_file() else SHIPPED / name
    if not file.is_file():
        raise UserError(
            f"{file}: missing; restore it (`git checkout -- {file}`), or write one in {folder}"
        )
    return file


def read_lines(
    path: Path, kind: type[Kind], faults: list[str] | None = None
) -> list[tuple[int, Kind]]:
    """Return the records of a JSON lines or CSV file with their line numbers.

    Faults are appended to `faults`; without a list the first one raises UserError.
    """
    records, problems = [], faults if faults is not None else []
    try:
        lines = numbered_lines(path, kind, problems)
    except UserError as error:
        lines = []
        problems.append(str(error))
    for number, line in lines:
        record = parse(line, kind)
        if isinstance(record, list):
            problems += [f"{path}:{number}: {fault}" for _, fault in record]
        else:
            records.append((number, record))
    if problems and faults is None:
        folder = path.parent if (path.parent / "shop.json").is_file() else path.parent.parent
        raise UserError(
            f"{problems[0]}\n`crawl2cart shop check {folder}` lists all faults of the shop."
        )
    return records


def numbered_lines(path: Path, kind: type[Record], faults: list[str]) -> Iterable[tuple[int, str]]:
    """Return the JSON text of each record of a file with its line number."""
    text = read_text(path)
    if path.suffix != ".csv":
        lines = enumerate(text.split("\n"), 1)
        return [(number, line) for number, line in lines if line.strip()]

    def add_fault(number: int, fault: str) -> None:
        faults.append(f"{path}:{number}: {fault}")

    return table_rows(text, kind.model_json_schema(), add_fault)


def rows(path: Path, kind: type[Kind]) -> list[Kind]:
    """Return the records of all files of one kind (`files_of`). Raises UserError for a fault."""
    return [record for file in files_of(path) for _, record in read_lines(file, kind)]


def read_one(path: Path, kind: type[Kind], inside: str | None = None) -> Kind:
    """Return the record that a JSON file is, or whose field `inside` it is.

    Raises UserError with all its faults.
    """
    if not path.is_file():
        schema = kind.model_json_schema()
        each = f"a record for each of the {inside}" if inside else expectation(schema, schema)
        raise UserError(f"{path}: missing; expected {each}")
    record = parse(read_text(path), kind, inside)
    if isinstance(record, list):
        raise UserError("\n".join(f"{path}:{line}: {fault}" for line, fault in record))
    return record


class Departments(Record):
    """The departments of departments.json, by key; the file holds the value of the field."""

    departments: dict[str, Department]


def read_departments(path: Path) -> dict[str, Department]:
    """Return the departments of departments.json by key. Raises UserError with all its faults."""
    return read_one(path, Departments, "departments").departments


def read_policy(path: Path) -> list[Section]:
    """Return the numbered sections of a policy in Markdown. The file's name is the topic.

    The file has `# Title`, then sections of `## 1 Heading` and a text. Raises UserError with the
    line of what is not so, or of a number that stands twice.
    """
    text = read_text(path)
    head, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    title = re.match(r"# (.+)", head)
    if not title or not parts:
        raise UserError(
            f"{path}:1: expected `# Title`, then sections that start with `## 1 Heading`"
        )
    sections: dict[str, Section] = {}
    offset = len(head)
    for part in parts:
        line = text.count("\n", 0, offset) + 1
        offset += len("## " + part)
        match = re.match(r"(\d+) ([^\n]+)\n\s*(\S.+)", part, flags=re.DOTALL)
        if not match:
            first_line = part.partition("\n")[0]
            raise UserError(
                f"{path}:{line}: `## {first_line}`: expected a number, a heading and a text below"
            )
        number, heading, body = match.groups()
        if number in sections:
            raise UserError(
                f"{path}:{line}: section {number}: stands twice; expected another number"
            )
        sections[number] = Section(
            topic=path.stem,
            title=title[1].strip(),
            section=number,
            heading=heading.strip(),
            text=" ".join(body.split()),
        )
    return list(sections.values())
