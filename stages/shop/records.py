"""What the files of a shop hold, one pydantic model per kind of line.

A shop is a folder like data/store. Every model refuses unknown and ill-typed fields, so that a misspelt key is a fault with a
name and never a value that is silently absent.
"""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.common.problem import Problem

Split = Literal["train", "validation", "test"]
Register = Literal["brief", "warm", "formal", "plain"]
State = Literal["placed", "packed", "shipped", "delayed", "delivered", "partly_returned", "returned", "cancelled"]
Intent = Literal["search", "facts", "compare", "recommend", "stock", "price", "order_status", "cancel", "return", "exchange",
                 "address", "warranty", "policy", "gift", "complaint", "unanswerable", "out_of_scope"]
ORDER_INTENTS = ("order_status", "cancel", "return", "exchange", "address")
SORTS = ("rating", "price_low", "price_high")

Text = Annotated[str, Field(min_length=1)]
ProductId = Annotated[str, Field(pattern=r"^[A-Z]{2,5}-[0-9]{2,6}$")]
OrderId = Annotated[str, Field(pattern=r"^[A-Z]{1,4}-[0-9]{3,8}$")]
Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
Money = Annotated[float, Field(ge=0)]
Price = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Reference = Annotated[str, Field(pattern="^(result [1-9]|same|first|second|third)$")]
Slots = {"product", "product_2", "product_3", "product_id", "category", "categories", "a_category", "department", "brand",
         "min_price", "max_price", "variant", "variant_2", "attribute", "order", "email", "address", "reason"}


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Variant(Record):
    name: Text
    stock: Count


class Product(Record):
    id: ProductId
    name: Text
    brand: Text
    department: Text
    category: Text
    price: Price
    currency: Text
    attributes: dict[str, bool | int | float | str]
    description: Text
    variants: Annotated[list[Variant], Field(min_length=1)]
    rating: Annotated[float, Field(ge=1, le=5)]
    weight_kg: Annotated[float, Field(gt=0)]
    warranty_months: Count
    related: list[ProductId]
    held_out: bool


class Review(Record):
    product: ProductId
    author: Text
    rating: Annotated[int, Field(ge=1, le=5)]
    text: Text
    instructs: bool


class Address(Record):
    street: Text
    town: Text
    postcode: Text

    def __str__(self) -> str:
        return f"{self.street}, {self.town} {self.postcode}"


class Customer(Record):
    id: Text
    name: Text
    email: Email
    phone: Text
    address: Address


class Line(Record):
    product: ProductId
    variant: Text
    quantity: Annotated[int, Field(ge=1)]
    price: Price


class Order(Record):
    order: OrderId
    customer: Text
    placed: date
    state: State
    items: Annotated[list[Line], Field(min_length=1)]
    shipping: Money
    total: Price
    carrier: str | None
    tracking: str | None
    expected: date | None
    delivered: date | None
    returned: list[ProductId]


class Category(Record):
    plural: Text
    attributes: dict[str, str]


class Department(Record):
    title: Text
    categories: dict[str, Category]


class Rules(Record):
    return_days: Count
    return_states: list[State]
    cancel_states: list[State]
    address_states: list[State]
    exchange_days: Count
    exchange_states: list[State]
    free_shipping_from: Money
    shipping_fee: Money
    non_returnable_categories: list[str]


class Shop(Record):
    name: Text
    today: date
    currency: Text
    facts: dict[str, str | list[str]]
    rules: Rules


class Section(Record):
    topic: Text
    title: Text
    section: Text
    heading: Text
    text: Text


class Wording(Record):
    text: Text
    split: Split
    fixed: dict[str, str]


class Turn(Record):
    intent: Intent | Literal["answer", "confirm", "refuse", "thanks"]
    text: Text
    product: Reference | None = None
    product_2: Reference | None = None
    product_3: Reference | None = None
    fixed: dict[str, str] = {}


class Plan(Record):
    id: Text
    split: Split
    about: Text
    turns: Annotated[list[Turn], Field(min_length=2, max_length=6)]
    order: Literal["own", "foreign"] | State = "own"


class Reply(Record):
    act: Text
    voice: Register = Field(alias="register")
    text: Text


class Reason(Record):
    text: Text
    split: Split
    fits: list[Literal["return", "exchange", "complaint"]]


Kind = TypeVar("Kind", bound=Record)


def explain(error: ValidationError) -> list[str]:
    """One line for each fault: the field, what is expected, what stands there."""
    return [f"{'.'.join(map(str, fault['loc'])) or 'the line'}: {fault['msg'][0].lower()}{fault['msg'][1:]}, found {fault['input']!r}"
            for fault in error.errors()]


def read_lines(path: Path, kind: type[Kind], faults: list[str] | None = None) -> list[tuple[int, Kind]]:
    """The records of a JSON lines file with their line numbers.

    Faults are appended to `faults` as `file:line: field: what is expected`; without a list the first is raised as a Problem.
    """
    found, seen = [], faults if faults is not None else []
    if not path.is_file():
        seen.append(f"{path}: missing; it should hold one {kind.__name__} a line")
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], 1):
        if line.strip():
            try:
                found.append((number, kind.model_validate_json(line)))
            except ValidationError as error:
                seen += [f"{path}:{number}: {text}" for text in explain(error)]
    if seen and faults is None:
        raise Problem(f"{seen[0]}\n`python -m stages.shop.check {path.parents[0]}` lists all faults of the shop.")
    return found


def rows(path: Path, kind: type[Kind]) -> list[Kind]:
    """The records of one file, or of all *.jsonl files of a folder, in order of file name."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise Problem(f"{path} holds no .jsonl file; it should hold one {kind.__name__} a line.")
    return [record for file in files for _, record in read_lines(file, kind)]


def read_one(path: Path, kind: type[Kind]) -> Kind:
    """A JSON file that is one record. Raises Problem with its faults."""
    if not path.is_file():
        raise Problem(f"{path} is missing; it should hold a {kind.__name__}.")
    try:
        return kind.model_validate_json(path.read_text())
    except ValidationError as error:
        raise Problem("\n".join(f"{path}: {text}" for text in explain(error))) from error


class Departments(Record):
    """departments.json: {"lighting": {"title": "Lighting", "categories": {"desk lamp": {"plural": …, "attributes": {…}}}}}"""

    departments: dict[str, Department]


def read_departments(path: Path) -> dict[str, Department]:
    if not path.is_file():
        raise Problem(f"{path} is missing; it should name the departments, their categories and the units of attributes.")
    try:
        return Departments.model_validate_json(f'{{"departments": {path.read_text()}}}').departments
    except ValidationError as error:
        raise Problem("\n".join(f"{path}: {text}" for text in explain(error))) from error


def read_policy(path: Path) -> list[Section]:
    """The numbered sections of one policy in Markdown: `# Title`, then `## 1 Heading` and its text. The file's name is the topic."""
    head, *parts = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)
    title = re.match(r"# (.+)", head)
    if not title or not parts:
        raise Problem(f"{path}: a policy starts with `# Title` and has sections that start with `## 1 Heading`.")
    sections = []
    for part in parts:
        match = re.match(r"(\d+) ([^\n]+)\n(.+)", part, flags=re.DOTALL)
        if not match:
            raise Problem(f"{path}: the section `## {part.splitlines()[0]}` needs a number, a heading and a text below.")
        number, heading, text = match.groups()
        sections.append(Section(topic=path.stem, title=title[1].strip(), section=number, heading=heading.strip(),
                                text=" ".join(text.split())))
    return sections


def spoken(value: bool | int | float | str, unit: str) -> str:
    """An attribute's value as one says it: `450 lumens`, `yes`, `oak`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = f"{value:g}" if isinstance(value, int | float) else value
    return f"{number} {unit}" if unit and not isinstance(value, str) else number


def spoken_date(day: date) -> str:
    """`21 May 2026`, for tool results that a reply can repeat as they are."""
    return f"{day.day} {day:%B} {day.year}"
