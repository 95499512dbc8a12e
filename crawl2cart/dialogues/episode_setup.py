"""Draw what is fixed before the first turn of a dialogue: product, identifiers and scenario."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Row

from crawl2cart.dialogues.entities import EntitySampler, Resample
from crawl2cart.dialogues.templates import Templates, slots
from crawl2cart.shop.data_model import Intent, Plan, Register, Split, Turn, Wording
from crawl2cart.shop.env import DAYS, Scenario, ScenarioOrder, ShopSessions

PRODUCT_INTENTS = ("facts", "price", "stock", "warranty")
PRODUCT_SLOTS = {"product", "product_id", "brand"}  # slots by which a customer names a product
# Order states to draw from for an intent. Those that its rules allow stand more often.
STATES = {
    "order_status": (
        "placed",
        "packed",
        "shipped",
        "delayed",
        "delivered",
        "partly_returned",
        "cancelled",
    ),
    "complaint": ("shipped", "delayed", "delayed", "delivered"),
    "cancel": ("placed", "packed", "placed", "packed", "shipped", "delayed", "delivered"),
    "address": ("placed", "packed", "placed", "packed", "shipped", "delayed"),
    "return": ("delivered",) * 5 + ("partly_returned", "shipped", "packed"),
    "exchange": ("delivered",) * 5 + ("partly_returned", "delayed", "placed"),
}
NEW_VARIANT_SOLD_OUT = 0.2  # of exchanges
ASKED_VARIANT_SOLD_OUT = 0.3  # of questions about the stock of a variant


@dataclass(frozen=True)
class EventRates:
    """How often each event happens, as a share of the dialogues in which it can happen.

    multi_turn: the dialogue follows a plan. foreign_order: the order belongs to somebody else.
    signed_in: the site has identified the customer. unknown_product: the shop does not have it.
    ambiguous_product: the customer names a category in its place ("the kettle").
    store_faults: the first one or two calls fail. hostile_review: the product's review gives
    orders to its reader. plain_review: it has another review. empty_search: the budget is below all
    prices. thanks: the customer has a last word. unlisted_attribute: the question is about an
    attribute that the product does not list. yes_no_attribute: it may be about one of yes and no.
    decline, decline_in_training: the customer declines a change. It is 0.5 in training, so that
    the model cannot default to acting.
    """

    multi_turn: float = 0.25
    foreign_order: float = 0.08
    signed_in: float = 0.3
    unknown_product: float = 0.04
    ambiguous_product: float = 0.25
    store_faults: float = 0.03
    hostile_review: float = 0.12
    plain_review: float = 0.15
    decline: float = 0.25
    decline_in_training: float = 0.5
    empty_search: float = 0.2
    thanks: float = 0.12
    unlisted_attribute: float = 0.3
    yes_no_attribute: float = 0.2


@dataclass(frozen=True)
class EpisodeContext:
    """What all episodes of a generator share. style_weights: of the assistant's styles."""

    shops: ShopSessions
    templates: Templates
    style_weights: Mapping[Register, float]
    rates: EventRates


class EpisodeSetup:
    """Draws the product, the identifiers and the scenario of one episode.

    template: a plan, or the wording of a first turn. intent: that of the wording, None with a plan.
    case: the safety case, if it is one. Raises Resample if the template and the draw do not fit.
    """

    def __init__(
        self,
        context: EpisodeContext,
        split: Split,
        template: Plan | Wording,
        intent: Intent | None,
        case: str | None,
        rng: random.Random,
    ):
        self.context, self.split, self.case, self.rng = context, split, case, rng
        self.plan = template if isinstance(template, Plan) else None
        if self.plan:
            self.turns = self.plan.turns
        else:
            self.turns = [Turn(intent=intent, text=template.text, fixed=template.fixed)]
        self.intents = [turn.intent for turn in self.turns]
        self._texts = " ".join(turn.text for turn in self.turns)
        self._slots = set(slots(self._texts))
        day = rng.randint(1, DAYS) if split == "train" else 0
        self.store = context.shops.catalogue(split, day)
        self.entities = EntitySampler(self.store, split, context.templates.customers, rng)
        products = context.shops.held_out[split] or self._product_ids()
        self.product = self.product_row(rng.choice(products))
        self.order_number = self.entities.order_number()
        self.email = self.entities.email()
        self.address = self.entities.address()
        self.variants = self.shuffled_variants(self.product)
        self.has_foreign_order = case == "foreign" or bool(
            self.plan and self.plan.order == "foreign"
        )
        self.scenario = self._scenario(day)

    def happens(self, rate: float) -> bool:
        """Draw whether an event of this rate happens."""
        return self.rng.random() < rate

    def product_row(self, product: str) -> Row:
        return self.store.one("SELECT * FROM products WHERE id = ?", product)

    def shuffled_variants(self, product: Row) -> list[str]:
        """Draw an order of the product's variants."""
        names = list(self.store.stock(product["id"]))
        return self.rng.sample(names, len(names))

    def _product_ids(self) -> list[str]:
        return [row["id"] for row in self.store.all("SELECT id FROM products ORDER BY id")]

    def _scenario(self, day: int) -> Scenario:
        order_intents = [intent for intent in self.intents if intent in STATES]
        orders, signed_in = [], None
        if order_intents or "order" in self._slots:
            orders, signed_in = self._orders(order_intents)
        stock = self._stock()
        is_product_question = not self.plan and self.intents[0] in PRODUCT_INTENTS
        review = self._review() if is_product_question else None
        may_rename = is_product_question and not (self.case or review)
        rates = self.context.rates
        self.names_unknown_product = (
            may_rename
            and "product" in self._slots
            and "variant" not in self._texts
            and self.happens(rates.unknown_product)
        )
        self.names_category = (
            may_rename
            and not self.names_unknown_product
            and self._slots & PRODUCT_SLOTS == {"product"}
            and self.happens(rates.ambiguous_product)
        )
        faults = 0
        if not (self.plan or self.case) and self.happens(rates.store_faults):
            faults = self.rng.randint(1, 2)
        return Scenario(
            catalogue=self.split,
            day=day,
            orders=tuple(orders),
            signed_in=signed_in,
            review=review,
            stock=tuple(stock),
            faults=faults,
        )

    def _stock(self) -> list[tuple[str, str, int]]:
        """Draw the stock of the variant that the customer wants, where it matters."""
        product, variant = self.product["id"], self.variants[0]
        stock = []
        if "exchange" in self.intents:
            sold_out = self.happens(NEW_VARIANT_SOLD_OUT)
            stock.append((product, variant, 0 if sold_out else self.rng.randrange(1, 40)))
        if "stock" in self.intents and "variant" in self._slots:
            planned = self.plan and "out of stock" in self.plan.about
            if planned or self.happens(ASKED_VARIANT_SOLD_OUT):
                stock.append((product, variant, 0))
        return stock

    def _review(self) -> tuple[str, str] | None:
        """Draw the review that is pinned to the product, if any."""
        product, rates = self.product["id"], self.context.rates
        hostile = self.context.shops.hostile_texts[self.split]
        plain = self.context.templates.plain_reviews[product]
        if self.case == "injection" and not hostile:
            raise Resample
        if hostile and (self.case == "injection" or self.happens(rates.hostile_review)):
            return product, self.rng.choice(hostile)
        if plain and self.happens(rates.plain_review):
            return product, self.rng.choice(plain)
        return None

    def _orders(self, order_intents: list[str]) -> tuple[list[ScenarioOrder], str | None]:
        """Draw the orders on file, the one in question first, and who is signed in, if anybody."""
        rates, has_number = self.context.rates, "order" in self._slots
        if not self.plan and not self.case and has_number:
            self.has_foreign_order = self.happens(rates.foreign_order)
        if "exchange" in order_intents and len(self.variants) < 2:
            raise Resample
        order = self._main_order(order_intents)
        # A customer who never gives an e-mail and yet decides about a change has to be signed in.
        must_sign_in = self.plan and bool({"confirm", "refuse"} & set(self.intents))
        if "email" in self._slots or not (must_sign_in or self.happens(rates.signed_in)):
            return [order], None
        if self.plan or has_number or not self.happens(rates.signed_in):
            return [order], self.email
        others = [product for product in self._product_ids() if product != self.product["id"]]
        product = self.rng.choice(others)
        number = self.entities.order_number()
        second = self.entities.order(
            "delivered", product, self.email, number, "order_status", alone=True
        )
        return [order, second], self.email

    def _main_order(self, order_intents: list[str]) -> ScenarioOrder:
        # Of several intents, a change decides in which state the order should be.
        reads = ("order_status", "complaint")
        changes = [intent for intent in order_intents if intent not in reads]
        intent = [*changes, *order_intents, "order_status"][0]
        state = self.plan.order if self.plan else "own"
        if state in ("own", "foreign"):
            state = self.rng.choice(STATES[intent])
        names_product = any(
            "{product}" in turn.text for turn in self.turns if turn.intent in ("return", "exchange")
        )
        return self.entities.order(
            state,
            self.product["id"],
            self.entities.email() if self.has_foreign_order else self.email,
            self.order_number,
            intent,
            alone=not names_product,
            variant=self.variants[1] if intent == "exchange" else None,
        )
