"""What the page asks of the server, each a request of its own; one set of routes for each kind of conversation.

    POST ask {key, query}                 takes a question: {key of the conversation from now on, refused: null or why not}
    POST judge {key, turn, part, liked}   notes a thumb
    POST forget {key}                     ends the conversation
    GET answers?key=...                   the log while it is written, as server-sent events; 204 if there is none

An event of `answers` holds the HTML of each turn that has changed, by its number; the first one holds all, so that a browser
whose connection was cut comes back to the whole log. `done` is the last. None of this goes through Gradio's queue: all events of
a tab share one stream there, which both ends close when an answer is complete, and a question sent at that moment was lost.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Depends, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent

from crawl2cart.demo.feedback import Feedback
from crawl2cart.demo.render import chat_html, turn_html
from crawl2cart.demo.sessions import Chat, Refused, Sessions

SECONDS_BETWEEN_LOOKS = 0.04
MILLISECONDS_TO_RETURN = 500  # after which a browser whose connection was cut asks again
Key = Annotated[str, Body(embed=True)]


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


def routes(sessions: Sessions, feedback: Feedback) -> APIRouter:
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

    @router.post("/judge")
    def record_feedback(
        key: Key,
        turn: Annotated[int, Body()],
        part: Annotated[int, Body()],
        liked: Annotated[bool, Body()],
    ) -> None:
        if chat := sessions.find(key):
            feedback.judge(chat, turn, part, liked)

    @router.post("/forget")
    def forget(key: Key) -> None:
        sessions.forget(key)

    def known(key: str) -> Chat:
        chat = sessions.find(key)
        if not chat or not chat.turns:
            raise HTTPException(204)  # after which a browser does not come back
        return chat

    @router.get("/answers", response_class=EventSourceResponse)
    async def answers(chat: Annotated[Chat, Depends(known)]) -> AsyncIterator[ServerSentEvent]:
        sent: list[str] = []
        async for look in follow(sessions, chat):
            changed = {
                number: html
                for number, html in enumerate(look)
                if sent[number : number + 1] != [html]
            }
            yield ServerSentEvent(data=changed, retry=MILLISECONDS_TO_RETURN)
            sent = look
        yield ServerSentEvent(event="done", data=True)

    return router
