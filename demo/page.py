"""The chat page: Gradio on this machine, without a request to any other.

What a page shows is a view of a conversation on the server (demo/sessions.py): it follows an answer while that is written, and
finds its conversation again after a reload by the key in the tab's own storage, which no other tab shares.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import fastapi  # noqa: E402
import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402

from demo.feedback import Feedback  # noqa: E402
from demo.guard import LOCAL, Guard  # noqa: E402
from demo.render import chat_html, turn_html, welcome_html  # noqa: E402
from demo.sessions import Chat, Refused, Sessions  # noqa: E402
from stages.common.problem import Problem  # noqa: E402

HERE = Path(__file__).parent
SECONDS_BETWEEN_LOOKS = 0.04
EXAMPLES = ("Do you have a tent under 300 dollars?", "How long can I return something?", "Where is my order TB-10984?",
            "What is the capital of France?")
SYSTEM_FONT = ["system-ui", "sans-serif"]
BAR = """<div class="bar"><div class="mark" aria-hidden="true">${value.name[0]}</div>
<div class="grow"><h1>${value.name}</h1><p>${value.notice}</p></div>
<button type="button" class="theme" aria-label="Light or dark">◐</button></div>"""
BAR_JS = """
if (localStorage.getItem("dark") !== null) document.body.classList.toggle("dark", localStorage.getItem("dark") === "1");
element.addEventListener("click", (event) => {
  if (event.target.closest(".theme")) localStorage.setItem("dark", document.body.classList.toggle("dark") ? "1" : "0");
});
"""


async def follow(sessions: Sessions, chat: Chat) -> AsyncIterator[list[str]]:
    """The log of a conversation each time it has changed, until its last answer is written or the conversation is forgotten."""
    thumbs, shown = None, None
    while sessions.find(chat.key) is chat and chat.turns:
        done = not chat.busy  # before looking: what is complete now is complete in the look
        judged = [part.liked for turn in chat.turns[:-1] for part in turn.parts]
        if judged != thumbs:  # nothing else changes in an answer that is written
            thumbs, earlier = judged, chat_html(chat)[:-1]
        look = [*earlier, turn_html(chat.turns[-1], len(chat.turns) - 1)]
        if look != shown:
            yield look
        if done:
            return
        shown = look
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def pane(sessions: Sessions, feedback: Feedback, storage: str, welcome: list[str], load: Callable) -> None:
    """A log and the box to ask in. storage: under which name the tab keeps the conversation's key. load: the page's load event."""
    limits = sessions.limits
    with gr.Column(elem_classes="pane"):
        log = gr.HTML(welcome, html_template='<div class="log" role="log" aria-live="polite"></div>', apply_default_css=False,
                      js_on_load=(HERE / "page.js").read_text())
        key = gr.Textbox(visible="hidden")
        with gr.Row(elem_classes="composer"):
            box = gr.Textbox(show_label=False, label="Your question", placeholder="Ask about products and orders",
                             lines=1, max_lines=6, max_length=limits.characters, elem_classes="ask", container=False,
                             scale=1)
            send = gr.Button("Send", elem_classes="send", scale=0)
            again = gr.Button("Start over", elem_classes="again", scale=0)

    async def ask(query: str, key: str) -> AsyncIterator[tuple]:
        try:
            chat = sessions.open(key)
            sessions.ask(chat, query or "")
        except Refused as refused:
            gr.Warning(str(refused))
            yield gr.skip(), gr.skip(), gr.skip()
            return
        first = True
        async for html in follow(sessions, chat):
            yield ("", chat.key, html) if first else (gr.skip(), gr.skip(), html)
            first = False
        yield gr.skip(), gr.skip(), gr.skip()  # Gradio repeats a stream's last values at its end, when a thumb may be up already

    async def restore(key: str | None) -> AsyncIterator[tuple]:
        chat = sessions.find(key)
        if chat and chat.turns:
            async for html in follow(sessions, chat):
                yield chat.key, html
        yield gr.skip(), gr.skip()  # the page opens on a welcome; whoever has asked by now must not be sent back to it

    def start_over(key: str) -> tuple:
        sessions.forget(key)
        return "", "", welcome

    def judge(key: str, event: gr.EventData) -> list[str] | dict:
        chat = sessions.find(key)
        if not chat:
            return gr.skip()
        feedback.judge(chat, int(event.turn), int(event.part), bool(event.liked))
        return chat_html(chat)

    quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    # Requests of their own: what is sent through the queue while a browser closes an answer's stream is dropped with that stream.
    at_once = quiet | {"queue": False, "trigger_mode": "multiple"}
    gr.on([box.submit, send.click], ask, [box, key], [box, key, log], **quiet)
    again.click(start_over, key, [box, key, log], **at_once)
    log.like(judge, key, log, **at_once)
    key.change(None, key, js=f"(key) => {{ sessionStorage.setItem('{storage}', key); }}", api_visibility="private")
    load(restore, key, [key, log], js=f"() => sessionStorage.getItem('{storage}') || ''", **quiet)


def page(chats: Sessions, comparisons: Sessions, feedback: Feedback, shop: str, notice: str) -> gr.Blocks:
    """chats: a conversation for each key, `comparisons` two of them. notice: who routes, for whoever looks at the page."""
    with gr.Blocks(title=shop, analytics_enabled=False) as blocks:
        gr.HTML({"name": shop, "notice": notice}, html_template=BAR, js_on_load=BAR_JS, apply_default_css=False)
        with gr.Tab("Chat"):
            pane(chats, feedback, "conversation", [welcome_html(
                "What can I do for you?", "Products, orders, returns and how we do things. Each answer says where it came from.",
                EXAMPLES)], blocks.load)
        with gr.Tab("SFT beside DPO"):
            pane(comparisons, feedback, "comparison", [welcome_html(
                "Two models, one question", "The same question goes to both tuned models, each with tools and a store of its own. "
                "A thumb says which answer is better.", EXAMPLES[:3])], blocks.load)
    return blocks


def application(blocks: gr.Blocks, token: str | None) -> fastapi.FastAPI:
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token)
    theme = gr.themes.Base(font=SYSTEM_FONT, font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(app, blocks, path="/", theme=theme, css_paths=HERE / "page.css", footer_links=[], run_history=False,
                               favicon_path=str(HERE / "favicon.svg"), show_error=False, ssr_mode=False, enable_monitoring=False,
                               mcp_server=False, pwa=False)


def listen(address: str, port: int) -> socket.socket:
    """A socket that is listening. Raises Problem if the address is not to be had."""
    try:
        return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        raise Problem(f"The page cannot be bound to {address} port {port} ({error.strerror}). `--port` names another port.") from error


def token_for(address: str) -> str | None:
    """None on this machine alone; elsewhere CRAWL2CART_TOKEN, or a new one that nobody can guess."""
    return None if address in LOCAL else os.environ.get("CRAWL2CART_TOKEN") or secrets.token_urlsafe(18)


def serve(app: fastapi.FastAPI, listening: socket.socket) -> None:
    """Serves until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listening])
