"""Reads a shop's folder: JSON, JSON lines, CSV and Markdown, with every fault named by file, line, field and what is expected.

speech.py reads what is said there.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from crawl2cart.core.errors import UserError
from crawl2cart.shop.csv_tables import resolved, table_rows
from crawl2cart.shop.data_model import Department, Record, Section

# A shop that lacks a file of what is said takes this shop's.
SHIPPED = Path(__file__).parents[2] / "data" / "store"
FORMATS = (".jsonl", ".csv")

Kind = TypeVar("Kind", bound=Record)


def read_text(path: Path) -> str:
    """A file's text, without the mark that spreadsheets put before UTF-8. Raises UserError if it is missing or not UTF-8."""
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


def no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON. A key that stands twice would silently lose a value, so it is a ValueError of that name."""
    twins = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    if twins:
        raise ValueError(twins[0])
    return dict(pairs)


def parsed(text: str, kind: type[Kind], inside: str | None = None) -> Kind | list[tuple[int, str]]:
    """The record that a JSON text states; or its faults, each with the line of the text and as `field: what is expected`.

    inside: the text is this field of the record.
    """
    whole = f'{{"{inside}": {text}}}' if inside else text
    try:
        json.loads(text, object_pairs_hook=no_twins)
        return kind.model_validate_json(whole)
    except ValidationError as error:
        return [
            (
                line_of(text, path, fault),
                f"{'.'.join(map(str, path[bool(inside) :])) or 'the line'}: {fault}",
            )
            for path, fault in explain(error, kind)
        ]
    except json.JSONDecodeError as error:
        return [
            (
                error.lineno,
                f"the line: expected JSON, but {error.msg[0].lower()}{error.msg[1:]} at column {error.colno}",
            )
        ]
    except ValueError as error:
        return [
            (line_of(text, (str(error),), ""), f"{error}: expected once in a record, found twice")
        ]


def line_of(text: str, path: tuple, fault: str) -> int:
    """The line of a JSON text on which the field at the end of the path stands, or where it is missing, the one around it."""
    place = 0
    for part in path[:-1] if fault.startswith("missing") else path:
        place = max(place, text.find(f'"{part}"', place))
    return text.count("\n", 0, place) + 1


def explain(error: ValidationError, kind: type[Record]) -> list[tuple[tuple, str]]:
    """For each fault the path of the field, with what is expected and what stands there."""
    schema, found = kind.model_json_schema(), {}
    for fault in error.errors():
        path, node = (), schema
        for part in fault["loc"] if fault["type"] != "extra_forbidden" else fault["loc"][:-1]:
            node = resolved(node, schema)
            if "anyOf" in node:
                break  # the rest of the path names the alternatives
            path += (part,)
            node = (
                node.get("items")
                if isinstance(part, int)
                else node.get("properties", {}).get(part, node.get("additionalProperties"))
            )
        if fault["type"] == "extra_forbidden":
            fields = ", ".join(resolved(node, schema)["properties"])
            found[*path, fault["loc"][-1]] = f"no field is called so; expected one of {fields}"
        elif fault["type"] == "missing":
            found[path] = f"missing; expected {expectation(node, schema)}"
        else:
            found[path] = (
                f"expected {expectation(node, schema)}, found {json.dumps(fault['input'], ensure_ascii=False, default=str)}"
            )
    return list(found.items())


def expectation(node: dict, schema: dict) -> str:
    """What a node of a JSON schema allows, in words."""
    node = resolved(node, schema)
    if "description" in node and "properties" not in node:
        return node["description"]
    if "enum" in node or "const" in node:
        return "one of " + ", ".join(node.get("enum", [node.get("const")]))
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(expectation(one, schema) for one in node["anyOf"]))
    limits = [
        f"{word} {node[key]:g}"
        for key, word in (
            ("exclusiveMinimum", "above"),
            ("minimum", "not below"),
            ("maximum", "not above"),
        )
        if key in node
    ]
    match node["type"]:
        case "string":
            return (
                "a date such as 2026-05-18"
                if node.get("format") == "date"
                else "text" + (", not empty" if "minLength" in node else "")
            )
        case "array":
            sizes = [
                f"{word} {node[key]}"
                for key, word in (("minItems", "at least"), ("maxItems", "at most"))
                if key in node
            ]
            return " ".join(
                [
                    "a list of",
                    *(["and".join(f" {size} " for size in sizes).strip()] if sizes else []),
                    expectation(node["items"], schema),
                ]
            )
        case "object":
            return (
                "a record of " + ", ".join(node["properties"])
                if "properties" in node
                else "a record"
            )
    words = {
        "number": "a number",
        "integer": "a whole number",
        "boolean": "true or false",
        "null": "null",
    }
    return " ".join([words[node["type"]], " and ".join(limits)]).strip()


def files_of(path: Path) -> list[Path]:
    """The files of one kind of record: `customers.jsonl` or `customers.csv`, or all such files of a folder, in order of name.

    Raises UserError if there is none, or if two of these hold the kind: a file of another shop was left behind.
    """
    alone = [file for file in (path.with_suffix(suffix) for suffix in FORMATS) if file.is_file()]
    inside = (
        sorted(file for file in path.glob("*") if file.suffix in FORMATS) if path.is_dir() else []
    )
    if len(alone) + bool(inside) > 1:
        places = ", ".join(map(str, [*alone, *([path] if inside else [])]))
        raise UserError(
            f"{path.with_suffix('')}: stands in more than one place ({places}); keep one of them"
        )
    if not alone and not inside:
        raise UserError(
            f"{path.with_suffix('')}: missing; expected {path.stem}.jsonl, {path.stem}.csv or a folder {path.stem} of such files"
        )
    return alone or inside


def own_or_shipped(folder: Path, name: str) -> Path:
    """The shop's own file of this name, or else that of data/store. Raises UserError if there is neither."""
    file = folder / name if (folder / name).is_file() else SHIPPED / name
    if not file.is_file():
        raise UserError(
            f"{file}: missing; take it from git again (`git checkout -- {file}`), or write one of the shop's own"
        )
    return file


def read_lines(
    path: Path, kind: type[Kind], faults: list[str] | None = None
) -> list[tuple[int, Kind]]:
    """The records of a JSON lines or CSV file with their line numbers.

    Faults are appended to `faults` as `file:line: field: what is expected`; without a list the first is raised as a UserError.
    """
    found, seen = [], faults if faults is not None else []
    try:
        text = read_text(path)
        if path.suffix == ".csv":
            lines = table_rows(
                text,
                kind.model_json_schema(),
                lambda number, fault: seen.append(f"{path}:{number}: {fault}"),
            )
        else:
            lines = [
                (number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()
            ]
    except UserError as problem:
        lines = []
        seen.append(str(problem))
    for number, line in lines:
        record = parsed(line, kind)
        if isinstance(record, list):
            seen += [f"{path}:{number}: {fault}" for _, fault in record]
        else:
            found.append((number, record))
    if seen and faults is None:
        folder = path.parent if (path.parent / "shop.json").is_file() else path.parent.parent
        raise UserError(
            f"{seen[0]}\n`python -m crawl2cart.dialogues.validate {folder}` lists all faults of the shop."
        )
    return found


def rows(path: Path, kind: type[Kind]) -> list[Kind]:
    """The records of all files of one kind, see `files_of`. Raises UserError for the first fault."""
    return [record for file in files_of(path) for _, record in read_lines(file, kind)]


def read_one(path: Path, kind: type[Kind], inside: str | None = None) -> Kind:
    """A JSON file that is one record, or the field `inside` of one. Raises UserError with its faults."""
    if not path.is_file():
        schema = kind.model_json_schema()
        raise UserError(
            f"{path}: missing; expected {f'a record for each of the {inside}' if inside else expectation(schema, schema)}"
        )
    record = parsed(read_text(path), kind, inside)
    if isinstance(record, list):
        raise UserError("\n".join(f"{path}:{line}: {fault}" for line, fault in record))
    return record


class Departments(Record):
    """departments.json: {"lighting": {"title": "Lighting", "categories": {"desk lamp": {"plural": …, "attributes": {…}}}}}"""

    departments: dict[str, Department]


def read_departments(path: Path) -> dict[str, Department]:
    return read_one(path, Departments, "departments").departments


def read_policy(path: Path) -> list[Section]:
    """The numbered sections of one policy in Markdown: `# Title`, then `## 1 Heading` and its text. The file's name is the topic.

    Raises UserError with the line of what is not so, and of a number that stands twice.
    """
    text = read_text(path)
    head, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    title = re.match(r"# (.+)", head)
    if not title or not parts:
        raise UserError(
            f"{path}:1: expected `# Title`, then sections that start with `## 1 Heading`"
        )
    sections: dict[str, Section] = {}
    place = len(head)
    for part in parts:
        line = text.count("\n", 0, place) + 1
        place += len("## " + part)
        match = re.match(r"(\d+) ([^\n]+)\n\s*(\S.+)", part, flags=re.DOTALL)
        if not match:
            raise UserError(
                f"{path}:{line}: `## {part.partition(chr(10))[0]}`: expected a number, a heading and a text below"
            )
        number, heading, said = match.groups()
        if number in sections:
            raise UserError(
                f"{path}:{line}: section {number}: stands twice; expected another number"
            )
        sections[number] = Section(
            topic=path.stem,
            title=title[1].strip(),
            section=number,
            heading=heading.strip(),
            text=" ".join(said.split()),
        )
    return list(sections.values())
