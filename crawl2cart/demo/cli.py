"""Talk with the released model on a page or in the terminal.

  crawl2cart demo                               the page, at http://127.0.0.1:7860
  crawl2cart chat                               a conversation in the terminal; `exit` ends it
  crawl2cart chat --email someone@example.com   the same as a signed-in customer
  crawl2cart ask "do you have a kettle under 60 dollars?" [--json]
  crawl2cart replay                             decide every recorded query again, list differences
  crawl2cart shop check data/store              list every fault of a shop's folder

Every query is classified first: by GPT-4 if OPENAI_API_KEY is set, by the local classifier
otherwise. Shopping queries go to models/released, or to the model folder or endpoint
(http://127.0.0.1:8000/v1) that --model names. It calls tools on a copy of the shop in data/store,
so nothing that it changes is kept. Each decision is recorded in runs/decisions.jsonl, without the
query's text unless demo.log_text of params.yaml is set.
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
from crawl2cart.demo.conversation import Answer, Conversation, sanitize
from crawl2cart.demo.sessions import Limits, Sessions
from crawl2cart.dialogues import validate
from crawl2cart.router.gpt4 import Gpt4
from crawl2cart.router.local import LocalRouter
from crawl2cart.router.policy import Route, Router
from crawl2cart.router.routing_log import LOG_PATH, RoutingLog, replay
from crawl2cart.shop.db import open_store
from crawl2cart.shop.tool_schemas import compact
from crawl2cart.shop.tools import Session

if TYPE_CHECKING:
    from fastapi import FastAPI

RELEASED = "models/released"
STORE = "data/store"
MODEL_HELP = "a model folder, or the URL of an OpenAI-compatible endpoint (%(default)s)"
DIM, NORMAL = "\033[2m", "\033[0m"
MAX_RESULT_CHARS = 300  # of a tool's result in the terminal


class Shop:
    """The store of data/store and the models that serve it, each opened once, when first needed.

    Every agent works on its own copy of the store.
    """

    def __init__(self):
        self.store = open_store(STORE)
        self._writers: dict[str, Writer] = {}
        self._lock = threading.Lock()

    def agent(self, model: str, email: str | None = None) -> Agent:
        """Return a new agent. model: a folder or the URL of an endpoint.

        Raise UserError if there is no such model or no customer with this e-mail.
        """
        if email and not self.store.one("SELECT id FROM customers WHERE email = ?", email):
            raise UserError(f"{STORE}/customers.jsonl has no customer with the e-mail {email}.")
        with self._lock:
            if model not in self._writers:
                self._writers[model] = open_model(model)
        return Agent(Session(self.store.copy(), signed_in=email), self._writers[model])


def open_model(model: str) -> Writer:
    """Open a model folder or an endpoint. Messages of libraries go to stderr."""
    if not is_url(model):
        check_model(model)  # before torch and transformers are imported, which takes seconds
    print(f"opening {model} …", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        return open_writer(model)


def open_router() -> Router:
    """Open the router of models/router, with GPT-4 if there is a key."""
    params = read_params(Path("params.yaml")).demo
    gpt = Gpt4(params.openai_model, params.input_price, params.output_price)
    router = Router(LocalRouter.load("models/router"), gpt)
    if router.notice:
        print(router.notice, file=sys.stderr)
    return router


def open_conversation(model: str, email: str | None) -> Conversation:
    """Open a conversation for the terminal. Its model is opened at the first shopping query."""
    keep_text = read_params(Path("params.yaml")).demo.log_text
    router, shop = open_router(), Shop()
    return Conversation(router, lambda: shop.agent(model, email), RoutingLog(keep_text=keep_text))


class TerminalPrinter:
    """Prints an answer to the terminal while it is written.

    Dim lines show who decided where the query goes, and each tool call with its result. The text
    follows.
    """

    def __init__(self, conversation: Conversation):
        self.conversation, self.printed = conversation, ""
        agent = conversation.agent
        # Calls that are on the screen already, or belong to earlier answers.
        self.calls_shown = len(agent.session.calls) if agent else 0
        self.route_shown = False

    def on_text(self, text: str) -> None:
        """Print what is new. Text that does not continue the earlier one starts a new line."""
        text = sanitize(text)
        if not text.startswith(self.printed):
            print()
            self.printed = ""
        if text and not self.printed:
            author = {"shopping": "agent", "other": "gpt"}[self.conversation.destination]
            self.show_steps(author)
        print(text[len(self.printed) :], end="", flush=True)
        self.printed = text

    def finish(self, answer: Answer) -> None:
        """Print the rest of the answer, and what went wrong on stderr."""
        if self.printed and not sanitize(answer.text).startswith(self.printed):
            self.on_text("")
        self.show_steps(answer.by)
        print(sanitize(answer.text)[len(self.printed) :], flush=True)
        show_problem(answer)

    def show_steps(self, author: str) -> None:
        """Print the route and the tool calls that are not shown yet. author: who answers."""
        dim = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        begin, end = (DIM, NORMAL) if dim else ("", "")
        lines, agent = [], self.conversation.agent
        if not self.route_shown:
            route = self.conversation.route
            decision = f"{route.label}, says {route.source} ({route.confidence:.2f}; {route.why})"
            lines.append(f"{decision}; answered by {author}")
            self.route_shown = True
        for call in agent.session.calls[self.calls_shown :] if agent else ():
            result = compact(call.result)
            if len(result) > MAX_RESULT_CHARS:
                result = result[:MAX_RESULT_CHARS] + "…"
            lines.append(f"{call.name} {compact(call.arguments)} -> {result}")
            self.calls_shown += 1
        for line in lines:
            print(f"{begin}  {sanitize(line)}{end}")


def chat(model: str, email: str | None) -> int:
    """Hold a conversation in the terminal until Ctrl-D or `exit`."""
    conversation = open_conversation(model, email)
    conversation.open()
    sys.stdin.reconfigure(errors="replace")  # a broken byte must not end the conversation
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
            printer = TerminalPrinter(conversation)
            printer.finish(conversation(query, printer.on_text))


def show_problem(answer: Answer) -> None:
    """Print what went wrong, if anything, on stderr."""
    if answer.problem:
        print(f"crawl2cart: {answer.problem}", file=sys.stderr)


def ask(query: str, model: str, email: str | None, as_json: bool) -> int:
    """Print the answer to one query. Return 1 if it could not be answered."""
    answer = open_conversation(model, email)(query)
    if as_json:
        print(json.dumps({"query": query} | asdict(answer), ensure_ascii=False))
    else:
        print(sanitize(answer.text))
    show_problem(answer)
    return int(answer.failed)


def route_to_shopping(query: str, before: tuple[str, ...]) -> Route:
    """Route every query to the shopping models, as the comparison does."""
    return Route("shopping", "page", 1.0, "both models are asked")


def open_page(
    router: Router, shop: Shop, model: str, compared: dict[str, str], token: str | None = None
) -> "FastAPI":
    """Return the page as an ASGI application.

    compared: models by their names on the page. token: what a request must bring, if anything.
    """
    # Imported here because gradio takes seconds to import and no other command needs it.
    from crawl2cart.demo.feedback import Feedback
    from crawl2cart.demo.page import build_app, build_page

    params = read_params(Path("params.yaml")).demo
    log = RoutingLog(keep_text=params.log_text)
    limits = Limits(
        params.max_query_chars,
        params.rate_limit_per_minute,
        params.max_concurrency,
        params.max_queue,
        params.max_sessions,
    )

    def open_chat() -> dict[str, Conversation]:
        return {"": Conversation(router, lambda: shop.agent(model), log)}

    def open_comparison() -> dict[str, Conversation]:
        return {
            name: Conversation(route_to_shopping, partial(shop.agent, compared_model))
            for name, compared_model in compared.items()
        }

    notice = "The local router routes; nothing leaves this machine."
    if router.has_key:
        notice = f"{params.openai_model} routes each question."
    blocks = build_page(shop.store.shop.name, notice, params.max_query_chars)
    chats, comparisons = Sessions(open_chat, limits), Sessions(open_comparison, limits)
    return build_app(blocks, chats, comparisons, Feedback(), token)


def demo(address: str, port: int, model: str, compared: dict[str, str]) -> int:
    """Serve the page until Ctrl-C, and open it in a browser if there is a desktop."""
    from crawl2cart.demo.page import listen, serve, token_for

    router, shop, token = open_router(), Shop(), token_for(address)
    with listen(address, port) as listening:
        app = open_page(router, shop, model, compared, token)
        host = f"[{address}]" if ":" in address else address
        query = f"?token={token}" if token else ""
        url = f"http://{host}:{listening.getsockname()[1]}/{query}"
        print(f"{url}  (Ctrl-C ends)", flush=True)
        desktop = {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
        if sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or desktop):
            threading.Timer(0.5, webbrowser.open, [url]).start()
        threading.Thread(target=warm_up, args=(shop, model), daemon=True).start()
        serve(app, listening)
    return 0


def warm_up(shop: Shop, model: str) -> None:
    """Open the model while the page is already served.

    If that fails, the page tells customers that shopping is unavailable, and tries again.
    """
    try:
        shop.agent(model)
    except UserError as problem:
        print(f"crawl2cart: {problem}", file=sys.stderr)


def replay_log(log: Path, texts: Path | None, as_json: bool) -> int:
    """Print each decision that the current router makes differently. Return 1 if there is one."""
    counts = {"same": 0, "changed": 0, "unknown_text": 0}
    for line in replay(log, texts, open_router()):
        outcome = "unknown_text" if line["now"] is None else "same" if line["same"] else "changed"
        counts[outcome] += 1
        if as_json:
            print(json.dumps(line))
        elif outcome == "changed":
            was, now = (
                f"{decision['route']} ({decision['source']}, {decision['confidence']:.2f})"
                for decision in (line["was"], line["now"])
            )
            print(f"{line['hash'][:12]}  was {was}, now {now}")
    print(
        f"{counts['same']} unchanged, {counts['changed']} changed, {counts['unknown_text']} "
        "without a known text (--texts names a file that has it)",
        file=sys.stderr,
    )
    return int(counts["changed"] > 0)


def check_shop(folder: Path) -> int:
    """Print what a shop's folder holds; exit with status 1 and every fault if there is one."""
    validate.main([str(folder)])
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; each command stores its function as `run`."""
    parser = argparse.ArgumentParser(
        prog="crawl2cart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add_command(name: str, text: str, parent=commands) -> argparse.ArgumentParser:
        return parent.add_parser(name, help=text, description=text)

    def add_customer(command: argparse.ArgumentParser) -> None:
        command.add_argument("--model", default=RELEASED, help=MODEL_HELP)
        command.add_argument(
            "--email", help="the signed-in customer (an e-mail of data/store/customers.jsonl)"
        )

    command = add_command("demo", "the chat page")
    command.add_argument(
        "--address", default="127.0.0.1", help="where it listens; others need a token (%(default)s)"
    )
    command.add_argument("--port", type=int, default=7860, help="0 takes a free one (%(default)s)")
    command.add_argument("--model", default=RELEASED, help=MODEL_HELP)
    for name in ("sft", "dpo"):
        command.add_argument(
            f"--{name}", default=f"models/{name}", help="a model to compare (%(default)s)"
        )
    command.set_defaults(
        run=lambda options: demo(
            options.address, options.port, options.model, {"SFT": options.sft, "DPO": options.dpo}
        )
    )

    command = add_command("chat", "a conversation in the terminal")
    add_customer(command)
    command.set_defaults(run=lambda options: chat(options.model, options.email))

    command = add_command("ask", "one answer; exit status 1 if there is none")
    add_customer(command)
    command.add_argument(
        "--json", action="store_true", help="print route, tool calls and answer as one JSON object"
    )
    command.add_argument("query")
    command.set_defaults(
        run=lambda options: ask(options.query, options.model, options.email, options.json)
    )

    command = add_command("replay", "decide recorded queries again; exit status 1 if one differs")
    command.add_argument(
        "log", nargs="?", type=Path, default=LOG_PATH, help="the routing log (%(default)s)"
    )
    command.add_argument("--texts", type=Path, help="JSON lines with a `text`, matched by hash")
    command.add_argument("--json", action="store_true", help="print one JSON object per record")
    command.set_defaults(run=lambda options: replay_log(options.log, options.texts, options.json))

    shop_commands = add_command("shop", "work on the folder of a shop").add_subparsers(
        dest="shop_command", required=True
    )
    text = "list every fault by file, line and field; exit status 1 if there is one"
    command = add_command("check", text, shop_commands)
    command.add_argument("folder", type=Path, help=f"the folder of a shop, such as {STORE}")
    command.set_defaults(run=lambda options: check_shop(options.folder))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit status: 0, 1 after a failure, 130 after Ctrl-C."""
    options = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that lacks a character shows `?`
    try:
        return options.run(options)
    except UserError as problem:
        print(f"crawl2cart: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130


if __name__ == "__main__":
    sys.exit(main())
