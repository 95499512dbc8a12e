"""Scenarios: what the shop of one split and day holds, and what a session changes."""

from crawl2cart.shop.db import ShopDB
from crawl2cart.shop.env import Scenario, ShopSessions
from crawl2cart.shop.tools import Session
from tests.dialogue_samples import SECOND_SHOP, STORE, generator
from tests.unit.shop.test_db import PRODUCTS


def test_no_catalogue_has_what_other_splits_hold_out():
    shops = generator().context.shops
    held_out = {product.id for product in PRODUCTS if product.held_out}
    validation, test = set(shops.held_out["validation"]), set(shops.held_out["test"])
    assert validation | test == held_out and not validation & test
    for split, day in (("train", 0), ("train", 5), ("validation", 0), ("test", 0)):
        store = shops.catalogue(split, day)
        absent = held_out - set(shops.held_out[split])
        for column, table in (("id", "products"), ("product", "lines"), ("product", "catalogue")):
            present = {row[column] for row in store.all(f"SELECT {column} FROM {table}")}
            assert present and not present & absent
        texts = {row["text"] for row in store.all("SELECT text FROM reviews")}
        hostile = [shops.hostile_texts[other] for other in shops.hostile_texts if other != split]
        assert texts and not texts & set().union(*hostile)


def prices(store: ShopDB) -> dict[str, float]:
    return {row["id"]: row["price"] for row in store.all("SELECT id, price FROM products")}


def test_a_day_has_its_own_prices_and_does_not_change_others():
    shops, others = ShopSessions(STORE), ShopSessions(STORE)
    others.catalogue("train", 9)
    today, files = prices(shops.catalogue("train", 3)), prices(shops.catalogue("train"))
    assert today == prices(others.catalogue("train", 3))
    changed = [product for product in files if today[product] != files[product]]
    assert len(changed) > 0.9 * len(files)
    assert all(0.65 * files[product] <= today[product] for product in changed)
    assert prices(shops.store).items() >= prices(shops.catalogue("test")).items()


def test_a_session_changes_its_own_store_only():
    shops = generator().context.shops
    first, second = (shops.session(Scenario(catalogue="test")) for _ in range(2))
    first.call("hand_off", {"reason": "x"})
    assert first.store.state_hash() != second.store.state_hash()
    assert second.store.state_hash() == shops.catalogue("test").state_hash()


# Another shop, of another trade


def test_another_shop_is_read_from_its_folder_alone():
    shops = generator(SECOND_SHOP).context.shops
    names = [row["name"] for row in shops.store.search(category="violins")]
    assert names == ["Ashgrove Fiddler violin", "Corbel Novice violin"]
    assert shops.store.topics == ["delivery", "returns", "warranty"]
    assert shops.held_out["validation"] and shops.held_out["test"]
    assert all(shops.hostile_texts.values())
    ids = {row["id"] for row in shops.store.all("SELECT id FROM products")}
    assert ids and not ids & {product.id for product in PRODUCTS}


def test_another_shop_has_rules_of_its_own():
    """Here orders are cancelled only while placed and returned for 14 days; whistles stay sold."""

    def show(order: str, email: str) -> dict:
        session = Session(generator(SECOND_SHOP).context.shops.store.copy())
        return session.call("get_order", {"order": order, "email": email})

    assert show("HR-2011", "odalys@brandreth.example")["may"] == ["cancel", "change address"]
    assert show("HR-2008", "k.holm@example.org")["may"] == ["change address"]
    late = show("HR-1874", "odalys@brandreth.example")
    assert late["may"] == [] and "14 days" in late["no_return"]
    items = show("HR-1960", "band@tiller.example")["items"]
    assert [item.get("no_return") for item in items] == ["tin whistles cannot come back", None]
