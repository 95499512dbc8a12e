"""The store finds what its files say: searches against the product files themselves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2cart.shop.data_model import Product
from crawl2cart.shop.db import NoSuchProduct
from crawl2cart.shop.loader import rows
from tests.dialogue_samples import STORE
from tests.unit.shop.shop_helpers import new_session, shared_store

PRODUCTS = rows(STORE / "products", Product)


@st.composite
def conditions(draw) -> dict:
    """Draw conditions that one product meets, or nearly meets."""
    product = draw(st.sampled_from(PRODUCTS))
    known = {
        "category": product.category,
        "brand": product.brand,
        "min_price": product.price * draw(st.just(1.0) | st.floats(0.5, 1.2)),
        "max_price": product.price * draw(st.just(1.0) | st.floats(0.9, 2)),
        "variant": draw(st.sampled_from(product.variants)).name,
    }
    names = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=4, unique=True))
    return {name: known[name] for name in names}


def meets(product: Product, wanted: dict) -> bool:
    in_stock = {variant.name for variant in product.variants if variant.stock}
    return (
        product.category == wanted.get("category", product.category)
        and product.brand == wanted.get("brand", product.brand)
        and wanted.get("min_price", 0) <= product.price <= wanted.get("max_price", 1e9)
        and ("variant" not in wanted or wanted["variant"] in in_stock)
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(conditions())
def test_a_search_returns_the_products_that_meet_every_condition(wanted):
    right = {product.id for product in PRODUCTS if meets(product, wanted)}
    results = shared_store().search(**wanted)
    assert {row["id"] for row in results} <= right
    assert len(results) == min(3, len(right))


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("price_low", lambda row: row["price"]),
        ("price_high", lambda row: -row["price"]),
        ("rating", lambda row: -row["rating"]),
    ],
)
def test_a_sorted_search_returns_the_first_of_all(sort, key):
    for category in {product.category for product in PRODUCTS}:
        products = [vars(product) for product in PRODUCTS if product.category == category]
        results = shared_store().search(category=category, sort=sort)
        assert [key(row) for row in results] == sorted(map(key, products))[:3]


def test_categories_are_found_by_singular_plural_part_and_department():
    store = shared_store()
    for department in store.departments.values():
        assert store.categories(department.title) == list(department.categories)
        for name, category in department.categories.items():
            assert store.categories(name.upper()) == store.categories(category.plural) == [name]
    assert set(store.categories("lamps")) == {"desk lamp", "floor lamp"}
    assert not store.categories("submarine") and not store.search(category="submarine")


def test_a_products_name_as_query_finds_it_first():
    for product in PRODUCTS[::6]:
        assert shared_store().search(query=product.name)[0]["id"] == product.id


def test_a_product_is_found_by_its_id_its_name_and_two_words_of_it():
    for product in PRODUCTS:
        name, two_words = product.name, " ".join(product.name.split()[:2])
        spellings = (product.id, product.id.lower(), name, name.upper(), two_words, f"  {name} ")
        for reference in spellings:
            assert shared_store().product(reference)["id"] == product.id
    for reference in ("Velm Nonesuch kettle", "", "ZZZ-0000"):
        with pytest.raises(NoSuchProduct):
            shared_store().product(reference)


def test_a_products_facts_are_those_of_its_file():
    session, departments = new_session(), shared_store().departments
    for product in PRODUCTS[::6]:
        facts = session.call("get_products", {"products": [product.id]})["products"][0]
        assert facts["price"] == f"{product.price:.2f}"
        assert facts["stock"] == {variant.name: variant.stock for variant in product.variants}
        assert facts["attributes"].keys() == product.attributes.keys()
        units = departments[product.department].categories[product.category].attributes
        for name, value in product.attributes.items():
            if isinstance(value, bool):
                expected = "yes" if value else "no"
            elif isinstance(value, str):
                expected = value
            else:
                expected = f"{value:g} {units[name]}".strip()
            assert facts["attributes"][name] == expected
