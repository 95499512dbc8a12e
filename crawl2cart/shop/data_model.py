"""The data model of a shop's folder: one pydantic model for each kind of line.

Every model refuses unknown and ill-typed fields. So a misspelt key is an error with a name, and not
a value that is silently absent. loader.py reads the files.
"""

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Split = Literal["train", "validation", "test"]
Register = Literal["brief", "warm", "formal", "plain"]
State = Literal[
    "placed",
    "packed",
    "shipped",
    "delayed",
    "delivered",
    "partly_returned",
    "returned",
    "cancelled",
]
Intent = Literal[
    "search",
    "facts",
    "compare",
    "recommend",
    "stock",
    "price",
    "order_status",
    "cancel",
    "return",
    "exchange",
    "address",
    "warranty",
    "policy",
    "gift",
    "complaint",
    "unanswerable",
    "out_of_scope",
]
FORMATS = (".jsonl", ".csv")
ORDER_INTENTS = ("order_status", "cancel", "return", "exchange", "address")
SORTS = ("rating", "price_low", "price_high")

Text = Annotated[str, Field(min_length=1)]
ProductId = Annotated[
    str,
    Field(
        pattern=r"^[A-Z]{2,5}-[0-9]{2,6}$",
        description="2 to 5 capitals, a hyphen, 2 to 6 digits (LMP-2041)",
    ),
]
OrderId = Annotated[
    str,
    Field(
        pattern=r"^[A-Z]{1,4}-[0-9]{3,8}$",
        description="1 to 4 capitals, a hyphen, 3 to 8 digits (TB-10984)",
    ),
]
Email = Annotated[
    str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", description="an e-mail address")
]
Money = Annotated[float, Field(ge=0)]
Price = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Reference = Annotated[
    str,
    Field(
        pattern="^(result [1-9]|same|first|second|third)$",
        description="result 1 to result 9, same, first, second or third",
    ),
]
Slots = {
    "product",
    "product_2",
    "product_3",
    "product_id",
    "category",
    "categories",
    "a_category",
    "department",
    "brand",
    "min_price",
    "max_price",
    "variant",
    "variant_2",
    "attribute",
    "order",
    "email",
    "address",
    "reason",
}


# What the shop's own files have to mention for a line to make sense: "Ostrand", "5 working days".
Needs = list[Text]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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
    attributes: dict[
        str, Annotated[bool | int | float | str, Field(description="a number, text, true or false")]
    ]
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
    needs: Needs = []


FollowUpIntent = Literal["answer", "confirm", "refuse", "thanks"]


class FollowUp(Record):
    intent: FollowUpIntent
    text: Text
    split: Split


class Turn(Record):
    intent: Intent | FollowUpIntent
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
    needs: Needs = []


class Reply(Record):
    act: Text
    voice: Register = Field(alias="register")
    text: Text
    needs: Needs = []


class Hostile(Record):
    """A text that tries to give orders to a machine that reads it."""

    text: Text
    split: Split


class Situation(Record):
    """Replies to one situation in five tones.

    asks: what the customer writes, where the right answer needs no tool.
    """

    id: Text
    split: Split
    situation: Text
    asks: Text | None = None
    good: Text
    cold: Text
    wordy: Text
    pushy: Text
    over_apologetic: Text


class Reason(Record):
    text: Text
    split: Split
    fits: Annotated[list[Literal["return", "exchange", "complaint"]], Field(min_length=1)]
    needs: Needs = []


def format_value(value: bool | int | float | str, unit: str) -> str:
    """Return an attribute's value in words: `450 lumens`, `yes`, `oak`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = f"{value:.12g}" if isinstance(value, int | float) else value
    return f"{number} {unit}" if unit and not isinstance(value, str) else number


def spoken_date(day: date) -> str:
    """Return a date as in `21 May 2026`, so that a reply can repeat it as it is."""
    return f"{day.day} {day:%B} {day.year}"
