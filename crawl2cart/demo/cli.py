"""Talk with the released model on a page or in the terminal.

  crawl2cart demo                                  the page, at http://127.0.0.1:7860
  crawl2cart chat                                  a conversation in the terminal; Ctrl-D or `exit` ends it
  crawl2cart chat --email someone@example.com      as a customer who is signed in
  crawl2cart ask "do you have a kettle under 60 dollars?" [--json]
  crawl2cart replay                                decides every recorded query again and shows what differs

Every query is classified first: by GPT-4 when OPENAI_API_KEY is set, by the local classifier otherwise. Shopping questions
go to models/released, or to the model folder or endpoint (http://127.0.0.1:8000/v1) that --model names, which calls tools on
a copy of the shop in data/store, so that nothing it changes is kept. Each decision is recorded in runs/decisions.jsonl,
without the text unless demo.log_text of params.yaml says so.
"""

import argparse
import contextlib
import json
import os
import readline  # noqa: F401  (gives input() arrow keys and a history)
import sys
import threading
import webbrowser
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crawl2cart.agent.agent import Agent, open_writer
from crawl2cart.agent.endpoint import Writer, is_url
from crawl2cart.core.errors import UserError
from crawl2cart.core.model_folder import check_model
from crawl2cart.core.params import read_params
from crawl2cart.demo.conversation import Answer, Conversation, plain
from crawl2cart.demo.sessions import Limits, Sessions
from crawl2cart.router.gpt4 import Gpt4
from crawl2cart.router.local import LocalRouter
from crawl2cart.router.policy import Route, Router
from crawl2cart.router.routing_log import DECISIONS, DecisionLog, replay
from crawl2cart.shop.db import open_store
from crawl2cart.shop.tool_schemas import compact
from crawl2cart.shop.tools import Session

if TYPE_CHECKING:
    from fastapi import FastAPI

RELEASED = "models/released"
STORE = "data/store"
PLACE = "a model folder, or the URL of an OpenAI-compatible endpoint"
DIM, NORMAL = "\033[2m", "\033[0m"
SHOWN_CHARACTERS = 300  # of a tool's result


class Shop:
    """The store of data/store and the models that serve it, each opened once, when it is first needed.

    Every agent works on a copy of the store.
    """

    def __init__(self):
        self.store = open_store(STORE)
        self._writers: dict[str, Writer] = {}
        self._lock = threading.Lock()

    def agent(self, place: str, email: str | None = None) -> Agent:
        """place: a model folder or the URL of an endpoint. Raises UserError if it, or the customer, is not there."""
        if email and not self.store.one("SELECT id FROM customers WHERE email = ?", email):
            raise UserError(f"{STORE}/customers.jsonl has no customer with the e-mail {email}.")
        with self._lock:
            if place not in self._writers:
                self._writers[place] = open_model(place)
        return Agent(Session(self.store.copy(), signed_in=email), self._writers[place])


def open_model(place: str) -> Writer:
    if not is_url(place):
        check_model(place)  # before torch and transformers are imported, which takes seconds
    print(f"opening {place} …", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        return open_writer(place)


def open_router() -> Router:
    demo = read_params(Path("params.yaml")).demo
    router = Router(
        LocalRouter.load("models/router"),
        Gpt4(demo.openai_model, demo.input_price, demo.output_price),
    )
    if router.notice:
        print(router.notice, file=sys.stderr)
    return router


def open_conversation(model: str, email: str | None) -> Conversation:
    keep_text = read_params(Path("params.yaml")).demo.log_text
    router, shop = open_router(), Shop()
    return Conversation(router, lambda: shop.agent(model, email), DecisionLog(keep_text=keep_text))


class Voice:
    """Prints an answer while it is written: in dim lines who decided where the query goes and which tools were called with what
    result, then the text.
    """

    def __init__(self, conversation: Conversation):
        self.conversation, self.said = conversation, ""
        agent = conversation.agent
        self.calls = (
            len(agent.session.calls) if agent else 0
        )  # that were shown, or belong to earlier answers
        self.routed = False

    def hear(self, text: str) -> None:
        text = plain(text)
        if not text.startswith(self.said):  # it was no reply; what comes now is told anew
            print()
            self.said = ""
        if text and not self.said:
            self.show_steps({"shopping": "agent", "other": "gpt"}[self.conversation.place])
        print(text[len(self.said) :], end="", flush=True)
        self.said = text

    def finish(self, answer: Answer) -> None:
        if self.said and not plain(answer.text).startswith(self.said):
            self.hear("")
        self.show_steps(answer.by)
        print(plain(answer.text)[len(self.said) :], flush=True)
        show_problem(answer)

    def show_steps(self, by: str) -> None:
        begin, end = (
            (DIM, NORMAL) if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
        )
        route, agent = self.conversation.route, self.conversation.agent
        lines = (
            []
            if self.routed
            else [
                f"{route.label}, says {route.source} ({route.confidence:.2f}; {route.why}); answered by {by}"
            ]
        )
        self.routed = True
        for call in agent.session.calls[self.calls :] if agent else ():
            result = compact(call.result)
            lines.append(
                f"{call.name} {compact(call.arguments)} -> {result[:SHOWN_CHARACTERS]}{'…' * (len(result) > SHOWN_CHARACTERS)}"
            )
            self.calls += 1
        for line in lines:
            print(f"{begin}  {plain(line)}{end}")


def chat(model: str, email: str | None) -> int:
    conversation = open_conversation(model, email)
    conversation.open()
    sys.stdin.reconfigure(
        errors="replace"
    )  # a byte that is no letter must not end the conversation
    print("Ask about products, orders, returns or how the shop does things. `exit` or Ctrl-D ends.")
    while True:
        try:
            query = input("> ").strip()
        except EOFError:
            print()
            return 0
        if query in ("exit", "quit"):
            return 0
        if query:
            voice = Voice(conversation)
            voice.finish(conversation(query, voice.hear))


def show_problem(answer: Answer) -> None:
    if answer.problem:
        print(f"crawl2cart: {answer.problem}", file=sys.stderr)


def ask(query: str, model: str, email: str | None, as_json: bool) -> int:
    answer = open_conversation(model, email)(query)
    print(
        json.dumps({"query": query} | asdict(answer), ensure_ascii=False)
        if as_json
        else plain(answer.text)
    )
    show_problem(answer)
    return int(answer.failed)


def straight(query: str, before: tuple[str, ...]) -> Route:
    """The route of a question that is not routed: to the shopping models, which are compared."""
    return Route("shopping", "page", 1.0, "both models are asked")


def open_page(
    router: Router, shop: Shop, model: str, compared: dict[str, str], token: str | None = None
) -> "FastAPI":
    """The page as an ASGI application. compared: models by their names there. token: what a request must bring, if anything."""
    from crawl2cart.demo.feedback import (
        Feedback,
    )  # here: gradio takes seconds to import, and no other command needs it
    from crawl2cart.demo.page import application, page

    params = read_params(Path("params.yaml")).demo
    log = DecisionLog(keep_text=params.log_text)
    limits = Limits(
        params.max_query_chars,
        params.rate_limit_per_minute,
        params.max_concurrency,
        params.max_queue,
        params.max_sessions,
    )
    chats = Sessions(lambda: {"": Conversation(router, lambda: shop.agent(model), log)}, limits)
    comparisons = Sessions(
        lambda: {
            name: Conversation(straight, partial(shop.agent, place))
            for name, place in compared.items()
        },
        limits,
    )
    notice = (
        f"{params.openai_model} routes each question."
        if router.has_key
        else "The local router routes; nothing leaves this machine."
    )
    return application(
        page(shop.store.shop.name, notice, params.max_query_chars),
        chats,
        comparisons,
        Feedback(),
        token,
    )


def demo(address: str, port: int, model: str, compared: dict[str, str]) -> int:
    """Serves the page until Ctrl-C."""
    from crawl2cart.demo.page import listen, serve, token_for

    router, shop, token = open_router(), Shop(), token_for(address)
    with listen(address, port) as listening:
        app = open_page(router, shop, model, compared, token)
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{listening.getsockname()[1]}/{f'?token={token}' if token else ''}"
        print(f"{url}  (Ctrl-C ends)", flush=True)
        if sys.stdout.isatty() and (
            sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
        ):
            threading.Timer(0.5, webbrowser.open, [url]).start()
        threading.Thread(target=try_to_open, args=(shop, model), daemon=True).start()
        serve(app, listening)
    return 0


def try_to_open(shop: Shop, model: str) -> None:
    """Opens the model while the page is already there. Without it the page says that shopping is down, and tries again."""
    try:
        shop.agent(model)
    except UserError as problem:
        print(f"crawl2cart: {problem}", file=sys.stderr)


def replay_decisions(log: Path, texts: Path | None, as_json: bool) -> int:
    """Prints each decision that the router of today would make differently, and a summary. Returns 1 if there is one."""
    counts = {"same": 0, "changed": 0, "unknown_text": 0}
    for line in replay(log, texts, open_router()):
        outcome = "unknown_text" if line["now"] is None else "same" if line["same"] else "changed"
        counts[outcome] += 1
        if as_json:
            print(json.dumps(line))
        elif outcome == "changed":
            was, now = (
                f"{side['route']} ({side['source']}, {side['confidence']:.2f})"
                for side in (line["was"], line["now"])
            )
            print(f"{line['hash'][:12]}  was {was}, now {now}")
    print(
        f"{counts['same']} as before, {counts['changed']} changed, {counts['unknown_text']} whose text is not known "
        "(--texts names a file that has it)",
        file=sys.stderr,
    )
    return int(counts["changed"] > 0)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="crawl2cart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(dest="command", required=True)
    for name, text in (
        ("chat", "a conversation in the terminal"),
        ("ask", "one answer; exit code 1 if there is none"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--model", default=RELEASED, help=f"{PLACE} (%(default)s)")
        command.add_argument(
            "--email",
            help="the customer who is signed in (an e-mail of data/store/customers.jsonl)",
        )
    command.add_argument(
        "--json", action="store_true", help="print route, tool calls and answer as one line of JSON"
    )
    command.add_argument("query")
    text = "the chat page"
    command = commands.add_parser("demo", help=text, description=text)
    command.add_argument(
        "--address",
        default="127.0.0.1",
        help="where it listens; with a token if not here (%(default)s)",
    )
    command.add_argument("--port", type=int, default=7860, help="0 takes a free one (%(default)s)")
    command.add_argument("--model", default=RELEASED, help=f"{PLACE} (%(default)s)")
    for name in ("sft", "dpo"):
        command.add_argument(
            f"--{name}", default=f"models/{name}", help="likewise, for the comparison (%(default)s)"
        )
    text = "decide every recorded query again; exit code 1 if a decision differs"
    command = commands.add_parser("replay", help=text, description=text)
    command.add_argument(
        "log", nargs="?", type=Path, default=DECISIONS, help=f"the records, {DECISIONS} by default"
    )
    command.add_argument(
        "--texts", type=Path, help="JSON lines with a `text`, found by their hashes"
    )
    command.add_argument(
        "--json", action="store_true", help="print one line of JSON for each record"
    )
    return whole


def main(words: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0, 1 for a failure that was put in words, 130 for Ctrl-C."""
    arguments = parser().parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without some letter shows `?`
    try:
        if arguments.command == "chat":
            return chat(arguments.model, arguments.email)
        if arguments.command == "demo":
            return demo(
                arguments.address,
                arguments.port,
                arguments.model,
                {"SFT": arguments.sft, "DPO": arguments.dpo},
            )
        if arguments.command == "replay":
            return replay_decisions(arguments.log, arguments.texts, arguments.json)
        return ask(arguments.query, arguments.model, arguments.email, arguments.json)
    except UserError as problem:
        print(f"crawl2cart: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130


if __name__ == "__main__":
    sys.exit(main())
