"""Many customers at once: nothing is mixed, nothing is lost, and everything has a limit."""

import asyncio
import json
import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as Path
from starlette.testclient import TestClient

from crawl2cart.agent.agent import CHANGED, COULD_NOT, Agent
from crawl2cart.agent.endpoint import Endpoint
from crawl2cart.core.files import read_jsonl
from crawl2cart.demo.auth import MAX_BODY_BYTES, AccessControl
from crawl2cart.demo.conversation import UNAVAILABLE, Conversation
from crawl2cart.demo.feedback import FEEDBACK, Feedback
from crawl2cart.demo.render import chat_html
from crawl2cart.demo.routes import follow, routes
from crawl2cart.demo.sessions import (
    BUSY,
    EMPTY,
    OVERLOADED,
    TOO_FAST,
    Chat,
    Limits,
    Refused,
    Sessions,
)
from crawl2cart.lm.formats import harmony
from crawl2cart.router.policy import Route
from crawl2cart.shop.db import open_store
from crawl2cart.shop.tool_schemas import TOOLS
from crawl2cart.shop.tools import Session
from tests import scripted_assistant
from tests.conftest import ROOT, wait_for
from tests.servers.openai_server import Reply, completion

STORE = open_store(ROOT / "data" / "store")
ORDERS = [
    (row["id"], row["email"], row["total"])
    for row in STORE.all(
        "SELECT o.id, c.email, o.total FROM orders o JOIN customers c ON c.id = o.customer "
        "WHERE o.state = 'placed' ORDER BY o.id"
    )
]
LIMITS = Limits(
    max_query_chars=500, rate_limit_per_minute=20, max_concurrency=4, max_queue=64, max_sessions=40
)


def reply(text: str) -> str:
    return harmony.completion({"role": "assistant", "content": text})


def call(name: str, **arguments: object) -> str:
    calls = [{"function": {"name": name, "arguments": arguments}}]
    return harmony.completion({"role": "assistant", "content": "", "tool_calls": calls})


def route_to_shopping(query: str, before: tuple[str, ...]) -> Route:
    return Route("shopping", "local", 1.0, "a test")


def question(order: str, total: str) -> str:
    return f"Order {order} is placed, ${total} in all. Shall I cancel it?"


def clerk(prompts: list[list[dict]], tools: list[dict], on_text=None) -> list[str]:
    """A model that looks up the customer's order, asks whether to cancel it, and does so at a yes.

    Every reply names the order, and is written in pieces.
    """
    (prompt,) = prompts
    first_query = next(message["content"] for message in prompt if message["role"] == "user")
    order, email = first_query.split()
    last = prompt[-1]
    if last["role"] == "user":
        if last["content"] == "yes":
            return [call("cancel_order", order=order)]
        return [call("get_order", order=order, email=email)]
    result = json.loads(last["content"])
    if "refund" in result:
        text = reply(f"Order {order} is cancelled, ${result['refund']} comes back.")
    else:
        text = reply(question(order, result["total"]))
    for end in range(0, len(text), 20):
        time.sleep(0.0002)
        if on_text:
            on_text(text[:end])
    return [text]


def open_sessions(
    limits: Limits = LIMITS, writer=clerk, clock=time.monotonic, route=route_to_shopping
) -> Sessions:
    def open_agent() -> Agent:
        return Agent(Session(STORE.copy()), writer)

    return Sessions(lambda: {"": Conversation(route, open_agent)}, limits, clock)


def answer_of(chat: Chat) -> str:
    wait_for(lambda: not chat.busy, 30)
    return chat.turns[-1].responses[0].text


# Concurrency


async def visit(sessions: Sessions, number: int, seed: float) -> None:
    """Be a customer who leaves while an answer is written and comes back with only the key."""
    chance = random.Random(seed)
    order, email, total = ORDERS[number % len(ORDERS)]
    others = {other for other, _, _ in ORDERS} - {order}
    key = sessions.open().key
    for query, expected in (
        (f"{order} {email}", question(order, f"{total:.2f}")),
        ("yes", f"Order {order} is cancelled, ${total:.2f} comes back."),
    ):
        sessions.ask(sessions.find(key), query)
        if chance.random() < 0.5:
            log = follow(sessions, sessions.find(key))
            for _ in range(chance.randint(0, 2)):
                await anext(log, None)
            await log.aclose()  # what a closed page does
        html = [html async for html in follow(sessions, sessions.find(key))][-1]
        assert expected in html[-1].replace("&#39;", "'"), (html, expected)
        assert not [other for other in others if other in "".join(html)]
    chat = sessions.find(key)
    assert [turn.query for turn in chat.turns] == [f"{order} {email}", "yes"]
    assert chat.conversations[""].agent.session.store.order(order)["state"] == "cancelled"
    assert STORE.order(order)["state"] == "placed"


@pytest.mark.parametrize("customers", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_customers_are_never_mixed_and_answers_are_kept_while_they_are_away(customers):
    sessions, chance = open_sessions(), random.Random(3)

    async def visit_all() -> None:
        gate = asyncio.Semaphore(20)

        async def one(number: int) -> None:
            async with gate:
                await visit(sessions, number, chance.random())

        await asyncio.gather(*map(one, range(customers)))

    with ThreadPoolExecutor(1) as pool:  # a browser of other tests holds this thread's event loop
        pool.submit(asyncio.run, visit_all()).result()
    sessions.close()


# Limits


def test_what_is_too_much_is_refused_and_the_conversation_goes_on():
    order, email, _ = ORDERS[0]
    now = [0.0]
    limits = Limits(
        40 + len(email), rate_limit_per_minute=3, max_concurrency=1, max_queue=0, max_sessions=2
    )
    sessions = open_sessions(limits, clock=lambda: now[0])
    chat = sessions.open()
    for query, reason in ((" ", EMPTY), ("x" * 500, "500 characters")):
        with pytest.raises(Refused, match=reason):
            sessions.ask(chat, query)
    sessions.ask(chat, f"{order} {email}")
    with pytest.raises(Refused, match=BUSY):
        sessions.ask(chat, "and?")
    with pytest.raises(Refused, match=OVERLOADED):
        sessions.ask(sessions.open(), "and I?")
    assert order in answer_of(chat)
    for _ in range(2):
        sessions.ask(chat, "again")
        answer_of(chat)
    with pytest.raises(Refused, match=TOO_FAST):
        sessions.ask(chat, "again")
    now[0] = 61.0
    sessions.ask(chat, "yes")
    assert "cancelled" in answer_of(chat)
    sessions.close()


def test_the_chat_that_was_idle_longest_is_forgotten_first_and_a_busy_one_never():
    let_go = threading.Event()

    def slow(prompts: list, tools: list, on_text=None) -> list[str]:
        let_go.wait(20)
        return [reply("Here.")]

    sessions = open_sessions(Limits(100, 20, 2, 2, max_sessions=2), slow)
    busy = sessions.open()
    sessions.ask(busy, "hello")
    idle = sessions.open()
    third = sessions.open()
    assert sessions.find(busy.key) and sessions.find(third.key) and not sessions.find(idle.key)
    assert sessions.open(idle.key).key != idle.key, "an unknown key opens nothing"
    let_go.set()
    assert answer_of(busy) == "Here."
    wait_for(lambda: not sessions._pending, 30)
    sessions.open()
    assert sessions.find(busy.key) and not sessions.find(third.key), "idle since its answer"
    sessions.close()


# Faults


def test_a_bug_of_our_own_still_ends_in_an_answer_that_does_not_quote_it():
    def broken(query: str, before: tuple[str, ...]) -> Route:
        raise RuntimeError("secret words")

    sessions = open_sessions(route=broken)
    chat = sessions.open()
    sessions.ask(chat, "hello")
    assert answer_of(chat) == UNAVAILABLE
    assert "RuntimeError" in chat_html(chat)[0] and "secret words" not in chat_html(chat)[0]
    sessions.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Reply(status=500), "InternalServerError"), (Reply(wait=3), "TimeoutError")],
)
def test_a_change_is_not_denied_when_the_model_fails_or_is_silent_after_it(server, fault, error):
    order, email, total = ORDERS[0]

    def answer(body: dict, key: str) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "tool":
            changed = "refund" in last["content"]
            return fault if changed else Reply(completion(question(order, f"{total:.2f}")))
        if last["content"] == "yes":
            return Reply(scripted_assistant.call("cancel_order", order=order))
        return Reply(scripted_assistant.call("get_order", order=order, email=email))

    server.answer = answer
    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
    agent = Agent(Session(STORE.copy()), Endpoint(client, "m"), seconds=1.0)
    sessions = Sessions(lambda: {"": Conversation(route_to_shopping, lambda: agent)}, LIMITS)
    chat = sessions.open()
    for query in (f"{order} {email}", "yes"):
        sessions.ask(chat, query)
        text = answer_of(chat)
    sessions.close()
    html = chat_html(chat)[-1]
    assert text == CHANGED and "Order cancelled" in html and error in html
    assert UNAVAILABLE not in html and chat.turns[-1].responses[0].answer.failed
    assert agent.session.store.order(order)["state"] == "cancelled"


def test_a_server_that_drips_does_not_hang_an_answer_and_calls_nothing_afterwards(server):
    order, email, _ = ORDERS[0]
    lookup = scripted_assistant.call("get_order", order=order, email=email)
    server.answer = lambda body, key: Reply(lookup, drip=0.05)
    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
    agent = Agent(Session(STORE.copy()), Endpoint(client, "m"), seconds=0.5)
    started = time.monotonic()
    answer = Conversation(route_to_shopping, lambda: agent)("where is it", lambda text: None)
    assert time.monotonic() - started < len(lookup) * 0.05 / 2
    assert (answer.text, answer.failed) == (COULD_NOT, True) and "TimeoutError" in answer.problem
    assert not agent.session.calls


# Requests


def controlled(token: str | None) -> TestClient:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(routes=[Path("/{path:path}", page, methods=["GET", "POST"])])
    return TestClient(AccessControl(app, token), base_url="http://127.0.0.1:7860")


def test_requests_are_limited_in_size_whether_they_state_it_or_not():
    client = controlled(None)
    assert client.post("/chat/ask", content=b"x" * MAX_BODY_BYTES).text == str(MAX_BODY_BYTES)
    assert client.post("/chat/ask", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert client.post("/chat/ask", content=(b"x" for _ in range(3))).status_code == 411
    assert client.post("/gradio_api/upload", content=b"a file").status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("[::1]:7860", 200),
        ("shop.example", 421),
        ("shop.example:7860", 421),
        ("127.0.0.1.shop.example", 421),
    ],
)
def test_a_page_of_this_machine_answers_to_no_other_host_name(host, status):
    assert controlled(None).get("/", headers={"host": host}).status_code == status


def test_elsewhere_a_page_asks_for_its_token_once():
    client = controlled("right-4711")
    for path, headers, status in (
        ("/", {}, 401),
        ("/?token=wrong", {}, 401),
        ("/", {"cookie": "crawl2cart_token=wrong"}, 401),
        ("/", {"authorization": "Bearer right-4711"}, 200),
    ):
        assert client.get(path, headers=headers, follow_redirects=False).status_code == status
    redirect = client.get("/?token=right-4711", follow_redirects=False)
    assert (redirect.status_code, redirect.headers["location"]) == (307, "/")
    assert "HttpOnly" in redirect.headers["set-cookie"]
    assert client.get("/").status_code == 200


def test_a_question_goes_to_its_kind_of_conversation_and_its_log_is_a_stream_that_ends(tmp_path):
    order, email, total = ORDERS[0]
    kinds, app = {name: open_sessions() for name in ("chat", "comparison")}, FastAPI()
    for name, sessions in kinds.items():
        app.include_router(routes(sessions, Feedback(tmp_path)), prefix=f"/{name}")
    client = TestClient(app)

    def events(key: str) -> tuple[dict[str, str], list[str]]:
        """The turns that the stream's data events add up to, and all its lines."""
        lines = client.get("/chat/answers", params={"key": key}).text.splitlines()
        turns = {}
        for line in lines:
            if line.startswith("data: {"):
                turns |= json.loads(line.removeprefix("data: "))
        return turns, lines

    empty = client.post("/chat/ask", json={"key": "", "query": " "}).json()
    assert empty["refused"] == EMPTY and events(empty["key"]) == ({}, [])
    query = {"key": empty["key"], "query": f"{order} {email}"}
    accepted = client.post("/chat/ask", json=query).json()
    assert accepted == {"key": empty["key"], "refused": None}, "a refusal costs no conversation"
    turns, lines = events(accepted["key"])
    assert list(turns) == ["0"] and f"is placed, ${total:.2f}" in turns["0"]
    assert lines.count("event: done") == 1
    again, lines = events(accepted["key"])
    assert again == turns and sum(line.startswith("data: {") for line in lines) == 1

    for name, key in (("comparison", accepted["key"]), ("chat", "an unknown key")):
        assert client.get(f"/{name}/answers", params={"key": key}).status_code == 204
    assert client.post("/chat/ask", json={"key": None, "query": ["x"]}).status_code == 422
    rating = {"key": accepted["key"], "turn": 0, "response": 0, "liked": True}
    assert client.post("/chat/feedback", json=rating).status_code == 200
    (file,) = tmp_path.glob("*.jsonl")
    assert read_jsonl(file)[0]["liked"] is True
    client.post("/chat/forget", json={"key": accepted["key"]})
    assert events(accepted["key"]) == ({}, [])
    for sessions in kinds.values():
        sessions.close()


# Ratings


def test_ratings_become_lines_and_can_be_changed_and_withdrawn(tmp_path):
    order, email, _ = ORDERS[0]
    folder = tmp_path / "feedback"
    sessions, feedback = open_sessions(), Feedback(folder)
    chat = sessions.open()
    sessions.ask(chat, f"{order} {email}")
    text = answer_of(chat)
    feedback.record_feedback(chat, 0, 0, True)
    (file,) = folder.glob("*.jsonl")
    (row,) = read_jsonl(file)
    assert row["liked"] is True and row["reply"] == {"role": "assistant", "content": text}
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool"]
    assert harmony.render(row["messages"] + [row["reply"]], TOOLS).endswith("<|return|>")
    assert chat.key not in file.name
    feedback.record_feedback(chat, 0, 0, False)
    assert [row["liked"] for row in read_jsonl(file)] == [False]
    feedback.record_feedback(chat, 0, 0, False)
    assert not file.exists()
    for turn, response in ((7, 0), (0, -1), (0, 1)):
        feedback.record_feedback(chat, turn, response, True)
    assert not list(folder.iterdir())
    sessions.close()


def test_git_ignores_the_folder_of_ratings():
    command = ["git", "check-ignore", "-q", f"{FEEDBACK}/x.jsonl"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0


# Markup


def test_nothing_that_a_customer_a_model_or_a_tool_writes_becomes_markup():
    evil = '<img src="http://evil.example/x.png" onerror="alert(1)"><script>alert(2)</script>"\'&'

    def rude(prompts: list, tools: list, on_text=None) -> list[str]:
        if prompts[0][-1]["role"] == "user":
            search = call("search_products", query=evil, category="tent")
            return [search + harmony.START + call("get_policy", topic=evil)]
        return [reply(f"{evil} and **bold**")]

    store = STORE.copy()
    with store.db:
        store.db.execute("UPDATE products SET name = name || ?", (evil,))

    def open_agent() -> Agent:
        return Agent(Session(store.copy()), rude)

    sessions = Sessions(lambda: {"": Conversation(route_to_shopping, open_agent)}, LIMITS)
    chat = sessions.open()
    sessions.ask(chat, evil)
    answer_of(chat)
    (html,) = chat_html(chat)
    assert "<img" not in html and "<script" not in html and 'onerror="' not in html
    assert html.count("&lt;img") >= 5
    sessions.close()


# Replies while they are written


def test_a_reply_is_visible_as_far_as_it_is_written_and_calls_never():
    tool_call = call("search_products", category="tent")
    assert {harmony.visible_reply(tool_call[:end]) for end in range(len(tool_call) + 1)} == {""}
    whole = reply("Here is one, for $20 < $30.")
    texts = [harmony.visible_reply(whole[:end]) for end in range(len(whole) + 1)]
    assert texts[-1] == harmony.parse_completion(whole)["content"]
    for earlier, later in zip(texts, texts[1:], strict=False):
        assert later.startswith(earlier) or earlier.startswith(later)
    assert not [text for text in texts if "|" in text]


def test_an_endpoints_reply_grows_by_words_and_ends_as_it_would_unstreamed(server):
    def answer(body: dict, key: str) -> Reply:
        if body["messages"][-1]["role"] == "tool":
            return Reply(completion("There is one, and it is good."))
        return Reply(scripted_assistant.call("search_products", category="tent"))

    server.answer = answer
    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
    streamed, plain = (Agent(Session(STORE.copy()), Endpoint(client, "m")) for _ in range(2))
    texts: list[str] = []
    assert streamed("a tent?", texts.append) == plain("a tent?") == "There is one, and it is good."
    assert streamed.messages == plain.messages
    words = "There is one, and it is good.".split()
    assert texts == [" ".join(words[:n]) for n in range(1, len(words) + 1)]
