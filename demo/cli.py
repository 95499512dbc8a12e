"""Talk with the released model in the terminal.

  crawl2cart chat                                  a conversation; Ctrl-D or `exit` ends it
  crawl2cart chat --email someone@example.com      as a customer who is signed in
  crawl2cart ask "do you have a kettle under 60 dollars?" [--json]
  crawl2cart replay                                decides every recorded query again and shows what differs

Every query is classified first: by GPT-4 when OPENAI_API_KEY is set, by the local classifier otherwise. Shopping questions
go to models/released, which calls tools on a copy of the shop in data/store, so that nothing it changes is kept. Each decision is
recorded in runs/decisions.jsonl, without the text unless demo.log_text of params.yaml says so.
"""

import argparse
import contextlib
import json
import os
import readline  # noqa: F401  (gives input() arrow keys and a history)
import sys
from dataclasses import asdict
from pathlib import Path

from demo.conversation import Answer, Conversation, plain
from demo.decisions import DECISIONS, DecisionLog, replay
from demo.gpt import Gpt
from demo.local_router import LocalRouter
from demo.router import Router
from stages.common.models import check_model
from stages.common.params import read_params
from stages.common.problem import Problem
from stages.shop.agent import Agent, open_writer
from stages.shop.schema import compact
from stages.shop.store import open_store
from stages.shop.tools import Session

RELEASED = "models/released"
STORE = "data/store"
DIM, NORMAL = "\033[2m", "\033[0m"
SHOWN_CHARACTERS = 300  # of a tool's result


def open_agent(email: str | None) -> Agent:
    """The released model on a store of its own. Raises Problem if one of them, or the customer, is not there."""
    check_model(RELEASED)  # before torch and transformers are imported, which takes seconds
    store = open_store(STORE)
    if email and not store.one("SELECT id FROM customers WHERE email = ?", email):
        raise Problem(f"{STORE}/customers.jsonl has no customer with the e-mail {email}.")
    print(f"opening {RELEASED} …", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        return Agent(Session(store, signed_in=email), open_writer(RELEASED))


def open_router() -> Router:
    demo = read_params(Path("params.yaml")).demo
    router = Router(LocalRouter.load("models/router"), Gpt(demo.openai_model, demo.input_price, demo.output_price))
    if router.notice:
        print(router.notice, file=sys.stderr)
    return router


def open_conversation(email: str | None) -> Conversation:
    keep_text = read_params(Path("params.yaml")).demo.log_text
    return Conversation(open_router(), lambda: open_agent(email), DecisionLog(keep_text=keep_text))


def show_steps(answer: Answer) -> None:
    """Prints in dim lines who decided where the query goes, and which tools were called with what result."""
    begin, end = (DIM, NORMAL) if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    route = answer.route
    lines = [f"{route.label}, says {route.source} ({route.confidence:.2f}; {route.why}); answered by {answer.by}"]
    for call in answer.calls:
        result = compact(call.result)
        lines.append(f"{call.name} {compact(call.arguments)} -> {result[:SHOWN_CHARACTERS]}{'…' * (len(result) > SHOWN_CHARACTERS)}")
    for line in lines:
        print(f"{begin}  {plain(line)}{end}")


def chat(email: str | None) -> int:
    conversation = open_conversation(email)
    conversation.open()
    sys.stdin.reconfigure(errors="replace")  # a byte that is no letter must not end the conversation
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
            answer = conversation(query)
            show_steps(answer)
            print(plain(answer.text), flush=True)
            show_problem(answer)


def show_problem(answer: Answer) -> None:
    if answer.problem:
        print(f"crawl2cart: {answer.problem}", file=sys.stderr)


def ask(query: str, email: str | None, as_json: bool) -> int:
    answer = open_conversation(email)(query)
    print(json.dumps({"query": query} | asdict(answer), ensure_ascii=False) if as_json else plain(answer.text))
    show_problem(answer)
    return int(answer.failed)


def replay_decisions(log: Path, texts: Path | None, as_json: bool) -> int:
    """Prints each decision that the router of today would make differently, and a summary. Returns 1 if there is one."""
    counts = {"same": 0, "changed": 0, "unknown_text": 0}
    for line in replay(log, texts, open_router()):
        outcome = "unknown_text" if line["now"] is None else "same" if line["same"] else "changed"
        counts[outcome] += 1
        if as_json:
            print(json.dumps(line))
        elif outcome == "changed":
            was, now = (f"{side['route']} ({side['source']}, {side['confidence']:.2f})" for side in (line["was"], line["now"]))
            print(f"{line['hash'][:12]}  was {was}, now {now}")
    print(f"{counts['same']} as before, {counts['changed']} changed, {counts['unknown_text']} whose text is not known "
          "(--texts names a file that has it)", file=sys.stderr)
    return int(counts["changed"] > 0)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="crawl2cart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True)
    for name, text in (("chat", "a conversation in the terminal"), ("ask", "one answer; exit code 1 if there is none")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--email", help="the customer who is signed in (an e-mail of data/store/customers.jsonl)")
    command.add_argument("--json", action="store_true", help="print route, tool calls and answer as one line of JSON")
    command.add_argument("query")
    text = "decide every recorded query again; exit code 1 if a decision differs"
    command = commands.add_parser("replay", help=text, description=text)
    command.add_argument("log", nargs="?", type=Path, default=DECISIONS, help=f"the records, {DECISIONS} by default")
    command.add_argument("--texts", type=Path, help="JSON lines with a `text`, found by their hashes")
    command.add_argument("--json", action="store_true", help="print one line of JSON for each record")
    return whole


def main(words: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0, 1 for a failure that was put in words, 130 for Ctrl-C."""
    arguments = parser().parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without some letter shows `?`
    try:
        if arguments.command == "chat":
            return chat(arguments.email)
        if arguments.command == "replay":
            return replay_decisions(arguments.log, arguments.texts, arguments.json)
        return ask(arguments.query, arguments.email, arguments.json)
    except Problem as problem:
        print(f"crawl2cart: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130


if __name__ == "__main__":
    sys.exit(main())
