"""Many customers at once: nothing mixed, nothing lost, nothing without a limit; and a reply that is heard while it is written."""

import asyncio
import json
import random
import threading
import time

import pytest
from fastapi import FastAPI
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as Address
from starlette.testclient import TestClient

from crawl2cart.agent.agent import CHANGED, COULD_NOT, Agent
from crawl2cart.agent.endpoint import Endpoint, OnText
from crawl2cart.core.files import read_jsonl
from crawl2cart.demo.auth import MOST_BYTES, Guard
from crawl2cart.demo.conversation import DOWN, Conversation
from crawl2cart.demo.feedback import Feedback
from crawl2cart.demo.render import chat_html
from crawl2cart.demo.routes import follow, routes
from crawl2cart.demo.sessions import Chat, Limits, Refused, Sessions
from crawl2cart.lm.formats import harmony
from crawl2cart.router.gpt4 import Gpt4, Spent, Unreachable, Unusable
from crawl2cart.router.policy import Route
from crawl2cart.shop.db import open_store
from crawl2cart.shop.tool_schemas import TOOLS
from crawl2cart.shop.tools import Session
from tests.conftest import ROOT, wait_for
from tests.servers.openai_server import Reply, completion, serve, streamed
from tests.unit.shop.test_shop import called, final

STORE = open_store(ROOT / "data" / "store")
ORDERS = [
    (row["id"], row["email"], row["total"])
    for row in STORE.all(
        "SELECT o.id, c.email, o.total FROM orders o JOIN customers c ON c.id = o.customer WHERE o.state = 'placed' ORDER BY o.id"
    )
]
LIMITS = Limits(
    max_query_chars=500, rate_limit_per_minute=20, max_concurrency=4, max_queue=64, max_sessions=40
)


def shopping(query: str, before: tuple[str, ...]) -> Route:
    return Route("shopping", "local", 1.0, "a test")


def clerk(prompts: list[list[dict]], tools: list[dict], hear=None) -> list[str]:
    """Looks at the customer's order, asks whether to cancel it, and cancels it at a yes. Every reply names the order."""
    (prompt,) = prompts
    asked = [message["content"] for message in prompt if message["role"] == "user"]
    order, email = asked[0].split()
    last = prompt[-1]
    if last["role"] == "user":
        return (
            [called("cancel_order", order=order)]
            if last["content"] == "yes"
            else [called("get_order", order=order, email=email)]
        )
    result = json.loads(last["content"])
    reply = (
        f"Order {result['order']} is cancelled, ${result['refund']} comes back."
        if "refund" in result
        else f"Order {result['order']} is {result['state']}, ${result['total']} in all. Shall I cancel it?"
    )
    text = final(reply)
    for end in range(0, len(text), 20):
        time.sleep(0.0002)
        if hear:
            hear(text[:end])
    return [text]


def clerks(limits: Limits = LIMITS, writer=clerk, clock=time.monotonic) -> Sessions:
    return Sessions(
        lambda: {"": Conversation(shopping, lambda: Agent(Session(STORE.copy()), writer))},
        limits,
        clock,
    )


def answer_of(chat: Chat) -> str:
    wait_for(lambda: not chat.busy, 30)
    return chat.turns[-1].parts[0].text


async def customer(sessions: Sessions, number: int, draw: random.Random) -> None:
    """Asks, looks or leaves while the answer is written, comes back with nothing but the key, says yes, leaves again."""
    order, email, total = ORDERS[number % len(ORDERS)]
    key = sessions.open().key
    for query, expected in (
        (f"{order} {email}", f"Order {order} is placed, ${total:.2f} in all. Shall I cancel it?"),
        ("yes", f"Order {order} is cancelled, ${total:.2f} comes back."),
    ):
        sessions.ask(sessions.find(key), query)
        if draw.random() < 0.5:
            looks = follow(sessions, sessions.find(key))
            for _ in range(draw.randint(0, 2)):
                await anext(looks, None)
            await looks.aclose()  # what a closed page does
        html = [html async for html in follow(sessions, sessions.find(key))][-1]
        assert expected in html[-1].replace("&#39;", "'"), (html, expected)
        others = {other for other, _, _ in ORDERS} - {order}
        assert not [other for other in others if other in "".join(html)]
    chat = sessions.find(key)
    assert [turn.query for turn in chat.turns] == [f"{order} {email}", "yes"]
    assert chat.conversations[""].agent.session.store.order(order)["state"] == "cancelled"
    assert STORE.order(order)["state"] == "placed"


def talk_all(conversations: int, at_a_time: int) -> None:
    sessions, draw, gate = clerks(), random.Random(3), asyncio.Semaphore(at_a_time)

    async def one(number: int) -> None:
        async with gate:
            await customer(sessions, number, random.Random(draw.random()))

    async def everyone() -> None:
        await asyncio.gather(*map(one, range(conversations)))

    asyncio.run(everyone())
    sessions.close()


def test_twenty_customers_at_a_time_are_never_mixed_and_what_is_written_while_they_are_away_is_kept():
    talk_all(60, 20)


@pytest.mark.slow
def test_a_thousand_conversations_with_random_disconnects_lose_nothing():
    talk_all(1000, 20)


# Limits


def test_what_is_too_much_is_refused_in_words_and_the_conversation_goes_on():
    order, email, _ = ORDERS[0]
    now = [0.0]
    sessions = clerks(
        Limits(
            40 + len(email), rate_limit_per_minute=3, max_concurrency=1, max_queue=0, max_sessions=2
        ),
        clock=lambda: now[0],
    )
    chat = sessions.open()
    for query, words in (("", "write a question"), ("x" * 500, "500 characters")):
        with pytest.raises(Refused, match=words):
            sessions.ask(chat, query)
    sessions.ask(chat, f"{order} {email}")
    with pytest.raises(Refused, match="One question at a time"):
        sessions.ask(chat, "and?")
    with pytest.raises(Refused, match="Too many customers"):
        sessions.ask(sessions.open(), "and I?")
    assert order in answer_of(chat)
    for _ in range(2):
        sessions.ask(chat, "again")
        answer_of(chat)
    with pytest.raises(Refused, match="wait a minute"):
        sessions.ask(chat, "again")
    now[0] = 61.0
    sessions.ask(chat, "yes")
    assert "cancelled" in answer_of(chat)
    sessions.close()


def test_the_conversation_that_was_idle_longest_is_forgotten_first_and_a_busy_one_never():
    let_go = threading.Event()

    def slow(prompts: list, tools: list, hear=None) -> list[str]:
        let_go.wait(20)
        return [final("Here.")]

    sessions = clerks(Limits(100, 20, 2, 2, max_sessions=2), slow)
    busy = sessions.open()
    sessions.ask(busy, "hello")
    idle = sessions.open()
    third = sessions.open()
    assert sessions.find(busy.key) and sessions.find(third.key) and not sessions.find(idle.key)
    assert sessions.open(idle.key).key != idle.key, "a key that is not ours opens nothing"
    let_go.set()
    assert answer_of(busy) == "Here."
    sessions.open()
    assert sessions.find(busy.key) and not sessions.find(third.key), (
        "idle since its answer, not since it was opened"
    )
    sessions.close()


def test_a_fault_of_our_own_still_ends_in_an_answer():
    def broken(query: str, before: tuple[str, ...]) -> Route:
        raise RuntimeError("secret words")

    sessions = Sessions(
        lambda: {"": Conversation(broken, lambda: Agent(Session(STORE.copy()), clerk))}, LIMITS
    )
    chat = sessions.open()
    sessions.ask(chat, "hello")
    assert answer_of(chat) == DOWN
    assert "RuntimeError" in chat_html(chat)[0] and "secret words" not in chat_html(chat)[0]
    sessions.close()


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Reply(status=500), "InternalServerError"), (Reply(wait=3), "TimeoutError")],
)
def test_a_change_is_not_denied_when_the_model_fails_or_is_silent_after_it(fault, error):
    order, email, total = ORDERS[0]

    def answer(body: dict, key: str) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "tool":
            return (
                fault
                if "refund" in last["content"]
                else Reply(
                    completion(f"Order {order} is placed, ${total:.2f} in all. Shall I cancel it?")
                )
            )
        name = "cancel_order" if last["content"] == "yes" else "get_order"
        return Reply(
            completion(
                None,
                tool_calls=[
                    {
                        "id": "x",
                        "type": "function",
                        "function": {
                            "name": name,
                            "arguments": json.dumps(
                                {"order": order}
                                | ({} if name == "cancel_order" else {"email": email})
                            ),
                        },
                    }
                ],
            )
        )

    with serve() as server:
        server.answer = answer
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        agent = Agent(Session(STORE.copy()), Endpoint(client, "m"), seconds=1.0)
        sessions = Sessions(lambda: {"": Conversation(shopping, lambda: agent)}, LIMITS)
        chat = sessions.open()
        for query in (f"{order} {email}", "yes"):
            sessions.ask(chat, query)
            said = answer_of(chat)
        sessions.close()
    html = chat_html(chat)[-1]
    assert said == CHANGED and "Order cancelled" in html and error in html and DOWN not in html
    assert (
        agent.session.store.order(order)["state"] == "cancelled"
        and chat.turns[-1].parts[0].answer.failed
    )


# What a request must be


def guarded(token: str | None) -> TestClient:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(routes=[Address("/{path:path}", page, methods=["GET", "POST"])])
    return TestClient(Guard(app, token), base_url="http://127.0.0.1:7860")


def test_requests_have_a_size_whether_they_tell_it_or_not():
    client = guarded(None)
    assert client.post("/chat/ask", content=b"x" * MOST_BYTES).text == str(MOST_BYTES)
    assert client.post("/chat/ask", content=b"x" * (MOST_BYTES + 1)).status_code == 413
    assert client.post("/chat/ask", content=(b"x" for _ in range(3))).status_code == 411
    assert client.post("/gradio_api/upload", content=b"a file").status_code == 404


def test_a_page_on_this_machine_answers_to_no_name_of_somebody_elses():
    client = guarded(None)
    assert [
        client.get("/", headers={"host": host}).status_code
        for host in (
            "127.0.0.1:7860",
            "localhost",
            "[::1]:7860",
            "shop.example",
            "shop.example:7860",
            "127.0.0.1.shop.example",
        )
    ] == [200, 200, 200, 421, 421, 421]


def test_elsewhere_a_page_asks_for_its_token_once():
    client = guarded("right-4711")
    assert [
        client.get(path, headers=headers, follow_redirects=False).status_code
        for path, headers in (
            ("/", {}),
            ("/?token=wrong", {}),
            ("/", {"cookie": "crawl2cart_token=wrong"}),
            ("/", {"authorization": "Bearer right-4711"}),
        )
    ] == [401, 401, 401, 200]
    came = client.get("/?token=right-4711", follow_redirects=False)
    assert (came.status_code, came.headers["location"]) == (307, "/")
    assert "HttpOnly" in came.headers["set-cookie"]
    assert client.get("/").status_code == 200


# What the page asks


def test_a_question_goes_to_its_own_kind_of_conversation_and_its_log_comes_in_events_that_end(
    tmp_path,
):
    order, email, total = ORDERS[0]
    kinds, app = {name: clerks() for name in ("chat", "comparison")}, FastAPI()
    for name, sessions in kinds.items():
        app.include_router(routes(sessions, Feedback(tmp_path)), prefix=f"/{name}")
    client = TestClient(app)

    def log(name: str, key: str) -> list[str]:
        return client.get(f"/{name}/answers", params={"key": key}).text.splitlines()

    empty = client.post("/chat/ask", json={"key": "", "query": " "}).json()
    assert empty["refused"] == "Please write a question first." and log("chat", empty["key"]) == []
    asked = client.post("/chat/ask", json={"key": empty["key"], "query": f"{order} {email}"}).json()
    assert asked == {"key": empty["key"], "refused": None}, (
        "what was refused has cost no conversation"
    )
    lines = log("chat", asked["key"])
    whole = {}
    for line in lines:
        if line.startswith("data: {"):
            whole |= json.loads(line.removeprefix("data: "))
    assert (
        lines.count("event: done") == 1
        and list(whole) == ["0"]
        and f"is placed, ${total:.2f}" in whole["0"]
    )
    again = [line for line in log("chat", asked["key"]) if line.startswith("data: {")]
    assert [json.loads(line.removeprefix("data: ")) for line in again] == [whole], (
        "who comes back finds all of it at once"
    )

    for name, key in (("comparison", asked["key"]), ("chat", "a key of nobody's")):
        assert client.get(f"/{name}/answers", params={"key": key}).status_code == 204
    assert client.post("/chat/ask", json={"key": None, "query": ["x"]}).status_code == 422
    client.post("/chat/forget", json={"key": asked["key"]})
    assert log("chat", asked["key"]) == []
    for sessions in kinds.values():
        sessions.close()


# Thumbs


def test_thumbs_become_lines_of_what_was_judged_and_can_be_changed(tmp_path):
    order, email, _ = ORDERS[0]
    sessions, feedback = clerks(), Feedback(tmp_path / "feedback")
    chat = sessions.open()
    sessions.ask(chat, f"{order} {email}")
    answer_of(chat)
    feedback.record_feedback(chat, 0, 0, True)
    (file,) = (tmp_path / "feedback").glob("*.jsonl")
    (row,) = read_jsonl(file)
    assert row["liked"] is True and row["reply"] == {
        "role": "assistant",
        "content": chat.turns[0].parts[0].text,
    }
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool"]
    assert harmony.render(row["messages"] + [row["reply"]], TOOLS).endswith("<|return|>")
    assert chat.key not in file.name
    feedback.record_feedback(chat, 0, 0, False)
    assert [row["liked"] for row in read_jsonl(file)] == [False]
    feedback.record_feedback(chat, 0, 0, False)
    assert not file.exists()
    feedback.record_feedback(chat, 7, 0, True)
    feedback.record_feedback(chat, 0, -1, True)
    assert not list((tmp_path / "feedback").iterdir())
    sessions.close()


def test_the_folder_of_thumbs_is_ignored_by_git():
    import subprocess

    assert (
        subprocess.run(["git", "check-ignore", "-q", "runs/feedback/x.jsonl"], cwd=ROOT).returncode
        == 0
    )


# Markup in texts


def test_nothing_that_a_customer_a_model_or_a_tool_writes_becomes_markup():
    evil = '<img src="http://evil.example/x.png" onerror="alert(1)"><script>alert(2)</script>"\'&'

    def rude(prompts: list, tools: list, hear=None) -> list[str]:
        if prompts[0][-1]["role"] == "user":
            return [
                called("search_products", query=evil, category="tent")
                + harmony.START
                + called("get_policy", topic=evil)
            ]
        return [final(f"{evil} and **bold**")]

    store = STORE.copy()
    with store.db:
        store.db.execute("UPDATE products SET name = name || ?", (evil,))
    sessions = Sessions(
        lambda: {"": Conversation(shopping, lambda: Agent(Session(store.copy()), rude))}, LIMITS
    )
    chat = sessions.open()
    sessions.ask(chat, evil)
    answer_of(chat)
    (html,) = chat_html(chat)
    assert "<img" not in html and "<script" not in html and 'onerror="' not in html
    assert html.count("&lt;img") >= 5
    sessions.close()


# Replies are heard while they are written


def test_a_reply_is_heard_as_far_as_it_is_written_and_nothing_of_calls():
    call = called("search_products", category="tent")
    heard = [harmony.visible_reply(call[:end]) for end in range(len(call) + 1)]
    assert set(heard) == {""}
    whole = final("Here is one, for $20 < $30.")
    heard = [harmony.visible_reply(whole[:end]) for end in range(len(whole) + 1)]
    assert heard[-1] == harmony.parse_completion(whole)["content"]
    assert all(
        later.startswith(earlier) or earlier.startswith(later)
        for earlier, later in zip(heard, heard[1:], strict=False)
    )
    assert not [text for text in heard if "|" in text]


def test_an_endpoints_reply_is_heard_word_by_word_and_ends_as_it_would_unheard():
    def answer(body: dict, key: str) -> Reply:
        if body["messages"][-1]["role"] == "tool":
            return Reply(completion("There is one, and it is good."))
        call = {
            "id": "x",
            "type": "function",
            "function": {"name": "search_products", "arguments": '{"category": "tent"}'},
        }
        return Reply(completion(None, tool_calls=[call]))

    with serve() as server:
        server.answer = answer
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        heard: list[str] = []
        agents = [Agent(Session(STORE.copy()), Endpoint(client, "m")) for _ in range(2)]
        replies = [agents[0]("a tent?", heard.append), agents[1]("a tent?")]
    assert replies == ["There is one, and it is good."] * 2
    assert agents[0].messages == agents[1].messages
    assert heard == [
        "There",
        "There is",
        "There is one,",
        "There is one, and",
        "There is one, and it",
        "There is one, and it is",
        "There is one, and it is good.",
    ]


def test_a_server_that_drips_does_not_hang_an_answer_and_calls_nothing_afterwards():
    order, email, _ = ORDERS[0]

    def answer(body: dict, key: str) -> Reply:
        return Reply(
            completion(
                None,
                tool_calls=[
                    {
                        "id": "x",
                        "type": "function",
                        "function": {
                            "name": "get_order",
                            "arguments": json.dumps({"order": order, "email": email}),
                        },
                    }
                ],
            ),
            drip=0.05,
        )

    with serve() as server:
        server.answer = answer
        agent = Agent(
            Session(STORE.copy()),
            Endpoint(OpenAI(base_url=server.url, api_key="none", max_retries=0), "m"),
            seconds=0.5,
        )
        started = time.monotonic()
        said = Conversation(shopping, lambda: agent)("where is it", lambda text: None)
        assert time.monotonic() - started < 5
    assert (said.text, said.failed, said.problem) == (
        COULD_NOT,
        True,
        "The shopping model failed (TimeoutError).",
    )
    assert not agent.session.calls


def test_gpt_is_heard_word_by_word_and_counted_as_when_it_is_not(monkeypatch):
    def ask(hear: OnText | None, spent: Spent) -> str:
        return Gpt4("m", 2.0, 8.0)(
            5,
            lambda ask: ask(
                spent, hear, messages=[{"role": "user", "content": "the capital of France?"}]
            ),
        )

    with serve() as server:
        server.answer = lambda body, key: Reply(completion("Paris, of course."))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        heard, spent = [], [Spent(), Spent()]
        assert ask(heard.append, spent[0]) == ask(None, spent[1]) == "Paris, of course."
        assert spent[0] == spent[1] and spent[0].input_tokens == 1000
        assert [text.strip() for text in heard] == ["Paris,", "Paris, of", "Paris, of course."]
        half = streamed(completion("Paris, of course."))[:-200]
        for fault in (
            Reply(half, type="text/event-stream", cut_short=True),
            Reply(completion("Paris"), cut=True),
            Reply(b"", status=500),
        ):
            server.answer = lambda body, key, fault=fault: fault
            with pytest.raises((Unreachable, Unusable)):
                ask(heard.append, Spent())


def test_a_local_model_is_heard_token_by_token(tmp_path):
    from crawl2cart.agent.agent import open_writer
    from tests.unit.demo.test_demo import tiny_model

    tiny_model(tmp_path / "model", None)
    writer, heard = open_writer(str(tmp_path / "model")), []
    prompt = [{"role": "user", "content": "a tent?"}]
    told = writer([prompt], TOOLS, heard.append)
    assert told == writer([prompt], TOOLS)
    assert len(heard) > 20 and heard[-1].rstrip("\ufffd") == told[0].rstrip("\ufffd")
    assert heard == sorted(heard, key=len)
