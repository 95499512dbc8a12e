"""Serve what the page requests: one set of routes for each kind of conversation.

    POST ask {key, query}                         accept a query
                                                  -> {key, refused: null or the reason}
    POST feedback {key, turn, response, liked}    rate an answer
    POST forget {key}                             end the conversation
    GET answers?key=...                           server-sent events; 204 if there are none

An event of `answers` holds the HTML of each turn that changed, by its number. The first event
holds all turns, so that a browser that reconnects gets the whole log. The last event is `done`.

Gradio's own queue is not used. It shares one stream between all events of a tab, which both ends
close when an answer is complete; a question sent at that moment was lost.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Depends, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent

from crawl2cart.demo.feedback import Feedback
from crawl2cart.demo.render import chat_html, turn_html
from crawl2cart.demo.sessions import Chat, Refused, Sessions

POLL_SECONDS = 0.04
RECONNECT_MILLISECONDS = 500
Key = Annotated[str, Body(embed=True)]


async def follow(sessions: Sessions, chat: Chat) -> AsyncIterator[list[str]]:
    """Yield the log's HTML each time it changed, until the last answer is complete.

    It also ends when the chat is forgotten.
    """
    ratings, shown = None, None
    while sessions.find(chat.key) is chat and chat.turns:
        done = not chat.busy  # read before the log, so that a complete answer is yielded complete
        now = [response.liked for turn in chat.turns[:-1] for response in turn.responses]
        if now != ratings:  # nothing else changes in earlier turns
            ratings, earlier = now, chat_html(chat)[:-1]
        log = [*earlier, turn_html(chat.turns[-1], len(chat.turns) - 1)]
        if log != shown:
            yield log
        if done:
            return
        shown = log
        await asyncio.sleep(POLL_SECONDS)


def routes(sessions: Sessions, feedback: Feedback) -> APIRouter:
    """Return the routes for one kind of conversation."""
    router = APIRouter()

    @router.post("/ask")
    def ask(key: Key, query: Annotated[str, Body()]) -> dict[str, str | None]:
        try:
            chat = sessions.open(key)
            key = chat.key
            sessions.ask(chat, query)
        except Refused as refused:
            return {"key": key, "refused": str(refused)}
        return {"key": key, "refused": None}

    @router.post("/feedback")
    def record_feedback(
        key: Key,
        turn: Annotated[int, Body()],
        response: Annotated[int, Body()],
        liked: Annotated[bool, Body()],
    ) -> None:
        if chat := sessions.find(key):
            feedback.record_feedback(chat, turn, response, liked)

    @router.post("/forget")
    def forget(key: Key) -> None:
        sessions.forget(key)

    def known_chat(key: str) -> Chat:
        chat = sessions.find(key)
        if not chat or not chat.turns:
            raise HTTPException(204)  # a browser does not reconnect after it
        return chat

    @router.get("/answers", response_class=EventSourceResponse)
    async def answers(
        chat: Annotated[Chat, Depends(known_chat)],
    ) -> AsyncIterator[ServerSentEvent]:
        sent: list[str] = []
        async for log in follow(sessions, chat):
            changed = {i: html for i, html in enumerate(log) if sent[i : i + 1] != [html]}
            yield ServerSentEvent(data=changed, retry=RECONNECT_MILLISECONDS)
            sent = log
        yield ServerSentEvent(event="done", data=True)

    return router
