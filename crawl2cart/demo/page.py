"""The chat page: Gradio on this machine, without a request to any other.

Gradio lays the page out. What it shows is a view of a conversation on the server (crawl2cart/demo/sessions.py): page.js asks, and follows an
answer while that is written, by requests of its own (crawl2cart/demo/routes.py), and finds its conversation again after a reload by the key
in the tab's own storage, which no other tab shares.
"""

import contextlib
import os
import secrets
import socket
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import fastapi  # noqa: E402
import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402

from crawl2cart.core.errors import UserError  # noqa: E402
from crawl2cart.demo.auth import LOCAL, Guard  # noqa: E402
from crawl2cart.demo.feedback import Feedback  # noqa: E402
from crawl2cart.demo.render import welcome_html  # noqa: E402
from crawl2cart.demo.routes import routes  # noqa: E402
from crawl2cart.demo.sessions import Sessions  # noqa: E402

HERE = Path(__file__).parent
CHAT, COMPARISON = "chat", "comparison"  # the two panes
EXAMPLES = (
    "Do you have a tent under 300 dollars?",
    "How long can I return something?",
    "Where is my order TB-10984?",
    "What is the capital of France?",
)
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


def pane(name: str, welcome: str, characters: int) -> None:
    """A log and the box to ask in. name: the pane's id, under which the tab keeps its conversation's key and the server has its routes."""
    with gr.Column(elem_id=name, elem_classes="pane"):
        gr.HTML(
            welcome,
            html_template='<div class="log" role="log" aria-live="polite"></div>',
            apply_default_css=False,
            js_on_load=(HERE / "page.js").read_text(),
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
                max_length=characters,
                elem_classes="ask",
                container=False,
                scale=1,
            )
            gr.Button("Send", elem_classes="send", scale=0)
            gr.Button("Start over", elem_classes="again", scale=0)


def page(shop: str, notice: str, characters: int) -> gr.Blocks:
    """notice: who routes, for whoever looks at the page. characters: of a question, at most."""
    with gr.Blocks(title=shop, analytics_enabled=False) as blocks:
        gr.HTML(
            {"name": shop, "notice": notice},
            html_template=BAR,
            js_on_load=BAR_JS,
            apply_default_css=False,
        )
        with gr.Tab("Chat"):
            pane(
                CHAT,
                welcome_html(
                    "What can I do for you?",
                    "Products, orders, returns and how we do things. Each answer says where it came from.",
                    EXAMPLES,
                ),
                characters,
            )
        with gr.Tab("SFT beside DPO"):
            pane(
                COMPARISON,
                welcome_html(
                    "Two models, one question",
                    "The same question goes to both tuned models, each with tools and a store of its own. "
                    "A thumb says which answer is better.",
                    EXAMPLES[:3],
                ),
                characters,
            )
    return blocks


def application(
    blocks: gr.Blocks, chats: Sessions, comparisons: Sessions, feedback: Feedback, token: str | None
) -> fastapi.FastAPI:
    """chats: a conversation for each key, `comparisons` two of them."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token)
    for name, sessions in ((CHAT, chats), (COMPARISON, comparisons)):
        app.include_router(routes(sessions, feedback), prefix=f"/{name}")
    theme = gr.themes.Base(font=SYSTEM_FONT, font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=theme,
        css_paths=HERE / "page.css",
        footer_links=[],
        run_history=False,
        favicon_path=str(HERE / "favicon.svg"),
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )


def listen(address: str, port: int) -> socket.socket:
    """A socket that is listening. Raises UserError if the address is not to be had."""
    try:
        return socket.create_server(
            (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        )
    except OSError as error:
        raise UserError(
            f"The page cannot be bound to {address} port {port} ({error.strerror}). `--port` names another port."
        ) from error


def token_for(address: str) -> str | None:
    """None on this machine alone; elsewhere CRAWL2CART_TOKEN, or a new one that nobody can guess."""
    return (
        None
        if address in LOCAL
        else os.environ.get("CRAWL2CART_TOKEN") or secrets.token_urlsafe(18)
    )


def serve(app: fastapi.FastAPI, listening: socket.socket) -> None:
    """Serves until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(
            sockets=[listening]
        )
