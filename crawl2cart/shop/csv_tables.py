"""CSV as the JSON lines that a shop's records are.

The first line names the columns. `address.street` is a field inside a field. A list stands in one cell: its entries are parted by
`;`, and the fields of an entry by `|`, in the order in which the record states them. An empty cell is a value that is not there.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")


def table_rows(
    text: str, schema: dict, fault: Callable[[int, str], None]
) -> Iterator[tuple[int, str]]:
    """The rows of a CSV text as JSON objects, each with the line on which it begins.

    schema: the JSON schema of a record. fault: is told the line of a row that can not be read, and what is expected.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not columns:
                columns = [cell.strip() for cell in cells]
                if problems := wrong_columns(columns, schema):
                    for problem in problems:
                        fault(line, problem)
                    return
            elif any(cell.strip() for cell in cells):
                if len(cells) != len(columns):
                    fault(
                        line,
                        f"the line: expected {len(columns)} cells, as many as the first line names, found {len(cells)}",
                    )
                else:
                    yield (
                        line,
                        json.dumps(
                            row(dict(zip(columns, cells, strict=True)), schema), ensure_ascii=False
                        ),
                    )
            line = reader.line_num + 1
    except csv.Error as error:
        fault(
            line,
            f"the line: {error}; expected cells parted by commas, in double quotes where a cell holds a comma or a quote",
        )
    if not columns:
        fault(1, "the line: expected the names of the columns")


def wrong_columns(columns: list[str], schema: dict) -> list[str]:
    """What the first line should say otherwise."""
    if len(columns) == 1 and ";" in columns[0]:
        return ["the line: expected columns parted by commas, found semicolons"]
    plain, inner = fields(schema)
    problems = [
        f"{name or 'the line'}: expected one column of that name, found {columns.count(name)}"
        for name in dict.fromkeys(columns)
        if columns.count(name) > 1
    ]
    for name in columns:
        outer, dot, _ = name.partition(".")
        if name not in plain and not (dot and outer in inner):
            problems.append(
                f"{name or 'a column without a name'}: no column is called so; expected "
                f"{', '.join([*plain, *(f'{outer}.NAME' for outer in inner)])}"
            )
    return problems


def fields(schema: dict) -> tuple[list[str], list[str]]:
    """Names of the columns of a record, and of the fields whose columns the shop may name (`attributes.NAME`)."""
    plain, inner = [], []
    for name, node in schema["properties"].items():
        node = resolved(node, schema)
        if "properties" in node:
            plain += [f"{name}.{part}" for part in node["properties"]]
        elif node.get("type") == "object":
            inner.append(name)
        else:
            plain.append(name)
    return plain, inner


def resolved(node: dict, schema: dict) -> dict:
    """A node of a JSON schema, or the definition to which it points."""
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def row(cells: dict[str, str], schema: dict) -> dict:
    """One record. Empty cells of a field that the shop names itself are left out."""
    found: dict = {name: {} for name in fields(schema)[1]}
    for column, text in cells.items():
        name, dot, part = column.partition(".")
        node = resolved(schema["properties"][name], schema)
        if not dot:
            put(found, name, text, node, schema)
        else:
            put(
                found.setdefault(name, {}),
                part,
                text,
                node.get("properties", {}).get(part, node.get("additionalProperties")),
                schema,
            )
    return found


def put(into: dict, name: str, text: str, node: dict, schema: dict) -> None:
    """Puts a cell's value under its name, if it has one: null, where that is allowed, or nothing for an empty cell."""
    given = value(text.strip(), node, schema)
    if given is not None or any(one.get("type") == "null" for one in node.get("anyOf", [])):
        into[name] = given


def value(text: str, node: dict, schema: dict) -> object:
    """What a cell says for a node of the schema. A word where a number should be stays a word, for the check to name."""
    node = resolved(node, schema)
    kinds = {one.get("type") for one in node.get("anyOf", [node])}
    if kinds == {"array"}:
        return [
            entry(part.strip(), resolved(node["items"], schema), schema)
            for part in text.split(";")
            if part.strip()
        ]
    if not text:
        return None
    if "boolean" in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kinds & {"number", "integer"} and NUMBER.fullmatch(text):
        return json.loads(text)
    return text


def entry(text: str, node: dict, schema: dict) -> object:
    """One entry of a list: a value, or a record whose fields are parted by `|`."""
    if "properties" not in node:
        return value(text, node, schema)
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != len(node["properties"]):
        return text
    return {
        name: value(part, inner, schema)
        for part, (name, inner) in zip(parts, node["properties"].items(), strict=True)
    }
