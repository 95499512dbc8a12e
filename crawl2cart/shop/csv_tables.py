"""Read CSV as the JSON records of a shop.

The first line names the columns. `address.street` is a field inside a field. A list stands in one
cell: `;` parts its entries, and `|` parts the fields of an entry, in the order of the record's
fields. An empty cell is a value that is not there.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")


def table_rows(
    text: str, schema: dict, add_fault: Callable[[int, str], None]
) -> Iterator[tuple[int, str]]:
    """Yield the rows of a CSV text as JSON objects, each with the line on which it begins.

    schema: the JSON schema of a record. add_fault: receives the line of a row that cannot be read,
    and what is expected.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not columns:
                columns = [cell.strip() for cell in cells]
                faults = column_faults(columns, schema)
                for fault in faults:
                    add_fault(line, fault)
                if faults:
                    return
            elif any(cell.strip() for cell in cells):
                if len(cells) == len(columns):
                    record = record_of(dict(zip(columns, cells, strict=True)), schema)
                    yield line, json.dumps(record, ensure_ascii=False)
                else:
                    add_fault(
                        line,
                        f"the line: expected {len(columns)} cells, as many as the first line "
                        f"names, found {len(cells)}",
                    )
            line = reader.line_num + 1
    except csv.Error as error:
        add_fault(
            line,
            f"the line: {error}; expected cells parted by commas, in double quotes where a cell "
            "holds a comma or a quote",
        )
    if not columns:
        add_fault(1, "the line: expected the names of the columns")


def column_faults(columns: list[str], schema: dict) -> list[str]:
    """Return what is wrong with the first line of a table."""
    if len(columns) == 1 and ";" in columns[0]:
        return ["the line: expected columns parted by commas, found semicolons"]
    names, open_fields = column_names(schema)
    faults = [
        f"{name or 'the line'}: expected one column of that name, found {columns.count(name)}"
        for name in dict.fromkeys(columns)
        if columns.count(name) > 1
    ]
    expected = ", ".join([*names, *(f"{field}.NAME" for field in open_fields)])
    for name in columns:
        field, dot, _ = name.partition(".")
        if name not in names and not (dot and field in open_fields):
            title = name or "a column without a name"
            faults.append(f"{title}: no column is called so; expected {expected}")
    return faults


def column_names(schema: dict) -> tuple[list[str], list[str]]:
    """Return the columns of a record, and the fields whose columns the shop names itself.

    `attributes` is such a field; its columns are `attributes.NAME`.
    """
    names, open_fields = [], []
    for name, node in schema["properties"].items():
        node = resolve(node, schema)
        if "properties" in node:
            names += [f"{name}.{part}" for part in node["properties"]]
        elif node.get("type") == "object":
            open_fields.append(name)
        else:
            names.append(name)
    return names, open_fields


def resolve(node: dict, schema: dict) -> dict:
    """Return a node of a JSON schema, or the definition to which it points."""
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def record_of(cells: dict[str, str], schema: dict) -> dict:
    """Return the record of a row. Empty cells of `attributes.NAME` columns are left out."""
    record: dict = {name: {} for name in column_names(schema)[1]}
    for column, text in cells.items():
        name, dot, part = column.partition(".")
        node = resolve(schema["properties"][name], schema)
        if dot:
            inner = node.get("properties", {}).get(part, node.get("additionalProperties"))
            set_value(record.setdefault(name, {}), part, text, inner, schema)
        else:
            set_value(record, name, text, node, schema)
    return record


def set_value(record: dict, name: str, text: str, node: dict, schema: dict) -> None:
    """Set a cell's value under its name. An empty cell sets null where the schema allows it."""
    value = cell_value(text.strip(), node, schema)
    may_be_null = any(one.get("type") == "null" for one in node.get("anyOf", []))
    if value is not None or may_be_null:
        record[name] = value


def cell_value(text: str, node: dict, schema: dict) -> object:
    """Return the value of a cell by its schema.

    A word where a number is expected stays a word, so that the check names it.
    """
    node = resolve(node, schema)
    types = {one.get("type") for one in node.get("anyOf", [node])}
    if types == {"array"}:
        item = resolve(node["items"], schema)
        parts = [part.strip() for part in text.split(";")]
        return [item_value(part, item, schema) for part in parts if part]
    if not text:
        return None
    if "boolean" in types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if types & {"number", "integer"} and NUMBER.fullmatch(text):
        return json.loads(text)
    return text


def item_value(text: str, node: dict, schema: dict) -> object:
    """Return one entry of a list: a value, or a record whose fields are parted by `|`."""
    if "properties" not in node:
        return cell_value(text, node, schema)
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != len(node["properties"]):
        return text
    return {
        name: cell_value(part, inner, schema)
        for part, (name, inner) in zip(parts, node["properties"].items(), strict=True)
    }
