"""The page in headless Chromium: ratings, reloads, cut connections, faults, tabs, phones."""

import contextlib
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Error, expect

from crawl2cart.agent.agent import CHANGED
from crawl2cart.demo import cli
from crawl2cart.demo.conversation import UNAVAILABLE
from crawl2cart.router.gpt4 import Gpt4
from crawl2cart.router.policy import Router
from tests import scripted_assistant
from tests.conftest import ROOT
from tests.servers.openai_server import Reply
from tests.unit.demo.page_driver import TIMEOUT, Site, Tab, open_site, open_tab, serving
from tests.unit.router.small_router import small_router

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def tab(browser, site) -> Iterator[Tab]:
    with open_tab(browser, site.url) as tab:
        yield tab


# Ratings


RATE_WHEN_ANSWERED = """(milliseconds) => new MutationObserver((_, observer) => {
    if (!document.querySelector(".thumb.down")) return;
    observer.disconnect();
    setTimeout(() => document.querySelector(".thumb.down").click(), milliseconds);
}).observe(document.body, { subtree: true, childList: true })"""


def test_a_thumb_pressed_at_any_moment_after_an_answer_is_saved_and_stays(tab, site):
    for milliseconds in (0, 10, 40, 120, 400):
        query = f"a tent, asked with {milliseconds} in mind"
        tab.page.evaluate(RATE_WHEN_ANSWERED, milliseconds)
        tab.ask(query)
        down = tab.button("Bad answer")
        expect(down).to_have_attribute("aria-pressed", "true", timeout=TIMEOUT)
        tab.page.wait_for_load_state("networkidle")  # the answer's stream has ended
        assert down.get_attribute("aria-pressed") == "true"
        (row,) = site.ratings(query)
        assert row["liked"] is False and row["reply"]["content"] in tab.last()
        tab.start_over()


def test_tab_and_enter_are_enough_and_a_button_changes_the_colours(tab, site):
    query = "a tent, asked with keys alone"
    tab.ask(query)
    wanted, reached = {"Send", "Light or dark", "Good answer"}, []
    focused = (
        "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
    )
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate(focused))
        if reached[-1] == "Good answer":
            tab.page.keyboard.press("Enter")
        if wanted <= set(reached):
            break
    expect(tab.button("Good answer")).to_have_attribute("aria-pressed", "true", timeout=TIMEOUT)
    assert wanted <= set(reached), reached
    tab.page.wait_for_load_state("networkidle")
    assert [row["liked"] for row in site.ratings(query)] == [True]
    dark = "document.body.classList.contains('dark')"
    before = tab.page.evaluate(dark)
    tab.page.locator(".theme:visible").click()
    assert tab.page.evaluate(dark) != before
    tab.page.reload()
    tab.page.wait_for_function(f"{dark} === {str(not before).lower()}")  # it is remembered


def test_a_rating_of_an_earlier_answer_stays_and_starting_over_ends_the_answer(tab, site):
    query = "a tent before a long answer"
    tab.ask(query)
    with site.model_writes("one word after the other " * 12, pause=0.1):
        tab.send("and another")
        text = tab.turns.last.locator(".text")
        expect(text).to_contain_text("other one", timeout=TIMEOUT)
        up = tab.turns.first.get_by_role("button", name="Good answer")
        up.click()
        expect(up).to_have_attribute("aria-pressed", "true", timeout=TIMEOUT)
        length = len(text.inner_text())
        texts = "[...document.querySelectorAll('.text')]"
        tab.page.wait_for_function(f"{texts}.at(-1).innerText.length > {length}")
        assert up.get_attribute("aria-pressed") == "true"
        assert [row["liked"] for row in site.ratings(query)] == [True]
        tab.start_over()
        tab.page.wait_for_timeout(1000)  # the server still writes the answer
        assert tab.turns.count() == 0 and tab.page.locator(".welcome:visible").count() == 1
    tab.page.reload()
    expect(tab.page.locator(".welcome:visible")).to_be_visible(timeout=TIMEOUT)
    assert tab.turns.count() == 0


# Reloads, cut connections, faults


def test_a_question_asked_while_the_page_still_loads_its_conversation_can_be_rated(tab, site):
    query, held = "a tent before the page is opened again", []
    tab.ask(query)
    tab.page.route(
        "**/answers?*", lambda route: held.append(route) if not held else route.continue_()
    )
    tab.page.reload()
    tab.page.wait_for_selector(".welcome:visible")
    assert tab.turns.count() == 0 and len(held) == 1
    tab.send("and another tent")
    tab.wait_for_answer(2)
    with contextlib.suppress(Error):  # the page has given up on this request
        held[0].continue_()
    tab.page.wait_for_load_state("networkidle")
    down = tab.turns.last.get_by_role("button", name="Bad answer")
    down.click()
    expect(down).to_have_attribute("aria-pressed", "true", timeout=TIMEOUT)
    assert [row["liked"] for row in site.ratings(query)] == [False] and tab.turns.count() == 2


def test_an_answer_whose_connection_is_cut_is_completed(tab, site):
    words, streams = " ".join(map(str, range(30))), []
    tab.page.on("request", lambda request: "/answers?" in request.url and streams.append(request))
    with site.model_writes(words, pause=0.15):
        tab.send("count")
        expect(tab.turns.last.locator(".text")).to_contain_text("0 1 2 3", timeout=TIMEOUT)
        site.cut_connections()
        tab.wait_for_answer(1)
    assert tab.turns.last.locator(".text").inner_text() == words and len(streams) == 2
    assert all("ERR_INCOMPLETE_CHUNKED_ENCODING" in complaint for complaint in tab.complaints)
    tab.complaints.clear()


def test_a_question_that_does_not_reach_the_shop_stays_in_the_box(tab):
    def answer_with(**response: object) -> None:
        tab.page.unroute("**/chat/ask")
        tab.page.route("**/chat/ask", lambda route: route.fulfill(**response))

    tab.page.route("**/chat/ask", lambda route: route.abort())
    tab.send("is anybody there?")
    expect(tab.refused).to_contain_text("cannot be reached", timeout=TIMEOUT)
    for status, body, message in (
        (413, "The request is too large.", "The request is too large."),
        (500, "Traceback", "error 500"),
    ):
        answer_with(status=status, body=body, content_type="text/plain")
        tab.button("Send").click()
        expect(tab.refused).to_contain_text(message, timeout=TIMEOUT)
        assert tab.box.input_value() == "is anybody there?"
    tab.complaints.clear()  # the browser names the requests that failed
    tab.page.unroute("**/chat/ask")
    tab.button("Send").click()
    tab.wait_for_answer(1)
    assert "is anybody there?" in tab.last()


def test_a_reply_grows_and_what_is_written_during_a_reload_is_not_lost(tab, site):
    words = " ".join(map(str, range(60)))
    with site.model_writes(words, pause=0.15):
        tab.send("count")
        text = "document.querySelector('.text')?.innerText"
        begun = tab.page.wait_for_function(f"{text}?.length > 5 && {text}").json_value()
        assert begun.startswith("0 1 2") and "59" not in begun, "the reply came at once"
        grown = tab.page.wait_for_function(f"{text}.length > {len(begun)} && {text}").json_value()
        assert grown.startswith(begun)
        tab.page.reload()
        tab.complaints.clear()  # the closed page complains that its stream was cut
        tab.wait_for_answer(1)
        assert tab.page.locator(".text:visible").inner_text() == words


def test_a_model_that_fails_after_a_change_leaves_the_change_on_the_page(tab, site):
    order, email = site.returnable_order()
    tab.ask(f"where is my order {order}, I am {email}")
    tab.ask("I want to return it")

    def fail_after_change(body: dict, key: str) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "tool" and "refund" in last["content"]:
            return Reply(status=500)
        return scripted_assistant.answer(body, key)

    site.models.answer = fail_after_change
    try:
        tab.ask("yes, please return it")
    finally:
        site.models.answer = scripted_assistant.answer
    assert CHANGED in tab.last() and "InternalServerError" in tab.last()
    assert UNAVAILABLE not in tab.last()
    assert "Return opened" in tab.turns.last.locator(".card.change").inner_text()


# Tabs, the comparison, phones


def test_two_tabs_are_two_conversations(tab, site):
    other = Tab(tab.page.context.new_page())
    other.open(site.url)
    tab.ask("do you have a tent?")
    other.ask("what is the capital of France?")
    other.page.reload()
    tab.page.reload()
    expect(tab.turns).to_have_count(1, timeout=TIMEOUT)
    expect(other.turns).to_have_count(1, timeout=TIMEOUT)
    assert "tent" in tab.last() and "France" not in tab.last()
    assert "Paris" in other.last() and "tent" not in other.last()
    assert not other.complaints


def test_sft_and_dpo_answer_side_by_side(tab):
    tab.page.get_by_role("tab", name="SFT beside DPO").click()
    tab.ask("how long do I have to return something?")
    responses = tab.turns.last.locator(".response")
    assert responses.locator(".who").all_inner_texts() == ["SFT", "DPO"]
    assert responses.locator(".policy").count() == 2
    left, right = responses.nth(0).bounding_box(), responses.nth(1).bounding_box()
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    tab.screenshot("compared")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_its_colours(browser, site, scheme):
    phone = {"viewport": {"width": 375, "height": 780}, "has_touch": True, "is_mobile": True}
    with open_tab(browser, site.url, color_scheme=scheme, **phone) as tab:
        tab.ask("do you have a tent under 300 dollars?")
        tab.turns.last.locator("summary").tap()
        tab.page.evaluate("window.scrollTo(0, 0)")
        expect(tab.box).to_be_in_viewport(ratio=1)
        tab.button("Send").tap()
        expect(tab.refused).to_be_in_viewport(ratio=1)
        tab.screenshot(f"phone-{scheme}")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 375
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
        assert (brightness > 200) == (scheme == "light"), ground


# A real model


def test_a_real_model_folder_answers_on_the_page(browser, tmp_path, monkeypatch):
    if not (ROOT / "models" / "released" / "model.safetensors").is_file():
        pytest.skip("needs models/released: `dvc repro` makes it")
    for name in ("data", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "store").symlink_to(ROOT / "data" / "store")
    (tmp_path / "models" / "released").symlink_to(ROOT / "models" / "released")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    router = Router(small_router(), Gpt4("gpt-test"))
    compared = {"SFT": "models/sft", "DPO": "models/dpo"}
    app = cli.open_page(router, cli.Shop(), "models/released", compared)
    with serving(app) as (url, _), open_tab(browser, url) as tab:
        tab.ask("do you have a tent under 300 dollars?", timeout=5 * TIMEOUT)  # opens the model
        assert tab.turns.last.locator(".text").inner_text()
        assert "local router" in tab.last() and UNAVAILABLE not in tab.last()
