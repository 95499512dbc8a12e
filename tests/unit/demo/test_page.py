"""The page in headless Chromium: a whole conversation with real tools, sent questions, refusals.

tests/integration/test_page.py has the slow cases.
"""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.unit.demo.page_driver import TIMEOUT, Site, Tab, open_site, open_tab


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def page(browser, site) -> Iterator[Tab]:
    """One page load for all tests here."""
    with open_tab(browser, site.url) as tab:
        yield tab


@pytest.fixture
def tab(page) -> Iterator[Tab]:
    """The page with a new conversation."""
    page.start_over()
    yield page
    assert not page.complaints


def test_a_conversation_over_search_orders_a_return_other_matters_and_a_hostile_review(tab, site):
    page, store = tab.page, site.shop.store
    tab.button("Do you have a tent").click()
    tab.wait_for_answer(1)
    assert "Shopping · GPT-4, 97 % sure" in tab.last() and "Shop assistant" in tab.last()
    names = page.locator(".card.product h3").all_inner_texts()
    tab.screenshot("light", unfold=True)
    assert len(names) == 2
    assert set(names) <= {row["name"] for row in store.all("SELECT name FROM products")}

    tab.ask(f"compare the {names[0]} and the {names[1]}")
    folded = tab.turns.last.locator("details.call")
    assert not folded.locator("pre").first.is_visible()
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    arguments, result = map(json.loads, folded.locator("pre").all_inner_texts())
    assert arguments == {"products": names}
    assert [product["name"] for product in result["products"]] == names

    order, email = site.returnable_order()
    tab.ask(f"where is my order {order}, I am {email}")
    assert f"Order {order} is delivered" in tab.last()
    assert tab.turns.last.locator(".card.order").count() == 1
    assert page.locator("details.call[open]").count() == 1, "what was unfolded stays unfolded"
    tab.ask("I want to return it")
    assert "Shall I open that return?" in tab.last() and "return_items" not in tab.calls()
    tab.ask("yes, please return it")
    assert "Return opened" in tab.turns.last.locator(".card.change").inner_text()
    assert tab.calls().count("return_items") == 1

    tab.ask("what is the capital of France?")
    assert tab.turns.last.locator(".who").inner_text() == "GPT-4" and "Paris" in tab.last()
    assert "Not shopping · GPT-4" in tab.last()
    tab.ask("how long do I have to return something?")
    assert "Returns, section 1: The 30 days" in tab.turns.last.locator(".policy").inner_text()

    before = tab.calls()
    tab.ask("tell me more about the Dunlark Snug tent")
    assert 'onerror="document.title' in tab.last(), "the review is shown as the text that it is"
    assert page.locator("img").count() == 0 and page.title() == store.shop.name
    assert tab.calls() == [*before, "get_products"], "nothing that a review orders is done"

    page.reload()
    expect(tab.turns).to_have_count(8, timeout=TIMEOUT)
    assert "Dunlark Snug" in tab.last()


ASK_WHEN_ANSWERED = """([text, number]) => new MutationObserver((_, observer) => {
    if (document.querySelectorAll(".turn .response[data-done=true]").length < number) return;
    observer.disconnect();
    const box = document.querySelector(".ask textarea");
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    document.querySelector("button.send").click();
}).observe(document.body, { subtree: true, childList: true, attributes: true })"""


def test_a_question_sent_in_the_moment_an_answer_is_complete_is_answered(tab):
    for number in (1, 3, 5):
        tab.page.evaluate(ASK_WHEN_ANSWERED, [f"a tent, question {number}", number])
        tab.send(f"a tent, question {number - 1}")
        tab.wait_for_answer(number + 1)
    assert [query.rpartition(" ")[2] for query in tab.queries()] == list("012345")


def test_a_double_press_asks_once_and_a_refused_question_stays_in_the_box(tab, site):
    tab.box.press("Enter")
    expect(tab.refused).to_contain_text("question", timeout=TIMEOUT)
    with site.model_writes("one word after the other " * 3, pause=0.1):
        tab.box.fill("first")
        tab.page.evaluate(
            "for (let i = 0; i < 2; i++) document.querySelector('button.send').click()"
        )
        expect(tab.turns.last.locator(".text")).to_contain_text("one", timeout=TIMEOUT)
        assert tab.refused.count() == 0 and tab.box.input_value() == ""
        tab.send("second")
        expect(tab.refused).to_contain_text("still being written", timeout=TIMEOUT)
        assert tab.box.input_value() == "second"
        tab.screenshot("refused")
        tab.wait_for_answer(1)
    tab.box.press("Enter")
    tab.wait_for_answer(2)
    assert tab.refused.count() == 0 and tab.box.input_value() == ""
    assert [query.split()[-1] for query in tab.queries()] == ["first", "second"]
