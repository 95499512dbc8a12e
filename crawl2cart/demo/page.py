"""Serve the chat page with Gradio, on this machine and without requests to any other.

Gradio lays out the page. Its content is a view of a conversation on the server (sessions.py).
page.js asks questions and follows answers with requests of its own (routes.py). After a reload it
finds its conversation again by the key in the tab's session storage, which no other tab shares.
"""

import contextlib
import os
import secrets
import socket
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
import fastapi  # noqa: E402
import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402

from crawl2cart.core.errors import UserError  # noqa: E402
from crawl2cart.demo.auth import LOOPBACK, AccessControl  # noqa: E402
from crawl2cart.demo.feedback import Feedback  # noqa: E402
from crawl2cart.demo.render import welcome_html  # noqa: E402
from crawl2cart.demo.routes import routes  # noqa: E402
from crawl2cart.demo.sessions import Sessions  # noqa: E402

FOLDER = Path(__file__).parent
CHAT, COMPARISON = "chat", "comparison"  # the ids of the two panes
EXAMPLES = (
    "Do you have a tent under 300 dollars?",
    "How long can I return something?",
    "Where is my order TB-10984?",
    "What is the capital of France?",
)
CHAT_INTRODUCTION = (
    "Products, orders, returns and how we do things. Each answer says where it came from."
)
COMPARISON_INTRODUCTION = (
    "The same question goes to both tuned models, each with tools and a store of its own. "
    "A thumb says which answer is better."
)
BAR = """<div class="bar"><div class="mark" aria-hidden="true">${value.name[0]}</div>
<div class="grow"><h1>${value.name}</h1><p>${value.notice}</p></div>
<button type="button" class="theme" aria-label="Light or dark">◐</button></div>"""
BAR_JS = """
const saved = localStorage.getItem("dark");
if (saved !== null) document.body.classList.toggle("dark", saved === "1");
element.addEventListener("click", (event) => {
  if (!event.target.closest(".theme")) return;
  localStorage.setItem("dark", document.body.classList.toggle("dark") ? "1" : "0");
});
"""


def add_pane(name: str, welcome: str, max_chars: int) -> None:
    """Add a log and the box to ask in.

    name: the pane's id, which is also the key of its conversation in the tab's storage and the
    prefix of its routes on the server.
    """
    with gr.Column(elem_id=name, elem_classes="pane"):
        gr.HTML(
            welcome,
            html_template='<div class="log" role="log" aria-live="polite"></div>',
            apply_default_css=False,
            js_on_load=(FOLDER / "page.js").read_text(),
        )
        with gr.Row(elem_classes="composer"):
            gr.HTML(
                html_template='<p class="refused" role="alert"></p>',
                js_on_load=None,
                apply_default_css=False,
                elem_classes="why",
            )
            gr.Textbox(
                show_label=False,
                label="Your question",
                placeholder="Ask about products and orders",
                lines=1,
                max_lines=6,
                max_length=max_chars,
                elem_classes="ask",
                container=False,
                scale=1,
            )
            gr.Button("Send", elem_classes="send", scale=0)
            gr.Button("Start over", elem_classes="again", scale=0)


def build_page(shop: str, notice: str, max_chars: int) -> gr.Blocks:
    """Lay out the page. notice: who routes queries. max_chars: the longest question."""
    with gr.Blocks(title=shop, analytics_enabled=False) as blocks:
        gr.HTML(
            {"name": shop, "notice": notice},
            html_template=BAR,
            js_on_load=BAR_JS,
            apply_default_css=False,
        )
        with gr.Tab("Chat"):
            welcome = welcome_html("What can I do for you?", CHAT_INTRODUCTION, EXAMPLES)
            add_pane(CHAT, welcome, max_chars)
        with gr.Tab("SFT beside DPO"):
            title = "Two models, one question"
            welcome = welcome_html(title, COMPARISON_INTRODUCTION, EXAMPLES[:3])
            add_pane(COMPARISON, welcome, max_chars)
    return blocks


def build_app(
    blocks: gr.Blocks, chats: Sessions, comparisons: Sessions, feedback: Feedback, token: str | None
) -> fastapi.FastAPI:
    """Return the page with its routes behind the access control.

    chats: one conversation for each key; comparisons: two of them for each key.
    """
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(AccessControl, token=token)
    for name, sessions in ((CHAT, chats), (COMPARISON, comparisons)):
        app.include_router(routes(sessions, feedback), prefix=f"/{name}")
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=gr.themes.Base(**fonts),
        css_paths=FOLDER / "page.css",
        footer_links=[],
        run_history=False,
        favicon_path=str(FOLDER / "favicon.svg"),
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )


def listen(address: str, port: int) -> socket.socket:
    """Return a listening socket. Raise UserError if the address or port is not available."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except OSError as error:
        raise UserError(
            f"The page cannot listen on {address} port {port} ({error.strerror}). "
            "Choose another port with --port."
        ) from error


def token_for(address: str) -> str | None:
    """Return None for this machine alone, else CRAWL2CART_TOKEN or a new random token."""
    if address in LOOPBACK:
        return None
    return os.environ.get("CRAWL2CART_TOKEN") or secrets.token_urlsafe(18)


def serve(app: fastapi.FastAPI, listening: socket.socket) -> None:
    """Serve the page until Ctrl-C."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
