"""Measure how long customers of the page wait, with 1, 5 and 20 of them at the same time.

    python -m benchmarks.demo                                     # models/released
    python -m benchmarks.demo --model http://127.0.0.1:8000/v1    # an endpoint

in   models/released, models/router, data/store, params.yaml
out  metrics/speed/demo.json: for each number of users
     - first_sign, first_token, whole: {p50, p95} in seconds until the route or a tool call is on
       the page, until the reply begins, and until it is complete
     - two_calls: `whole` of the answers with two tool calls or more, and their number
     - calls (mean per answer), answers
     and model, cores_used, load_before (the machine's load average; above 0 other programs ran)

The customers talk to the page over HTTP as a browser does.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np

from benchmarks.report import write_report

USERS = (1, 5, 20)
QUESTIONS = (
    "do you have a tent under 300 dollars?",
    "where is my order TB-10984, my e-mail is someone@example.com",
    "how long can I return a lamp?",
    "which kettle has the best rating?",
    "I want to cancel order TB-13012",
    "do you have a bird cage in white?",
    "what does delivery to Ostrand cost?",
    "is there a warranty on luggage?",
)


@dataclass(frozen=True)
class Wait:
    """How long one customer waited, in seconds, and the number of tool calls."""

    first_sign: float
    first_token: float
    whole: float
    calls: int


def start_page(model: str) -> tuple[subprocess.Popen, str]:
    """Start the page and return its process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "crawl2cart.demo.cli", "demo", "--port", "0", "--model", model],
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"},
    )
    line = process.stdout.readline()
    if not line.startswith("http"):
        sys.exit("The page did not start; its message is above.")
    return process, line.split()[0]


def ask(url: str, question: str) -> Wait:
    """Ask as a new customer. Raise RuntimeError if there is no answer."""
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        started = time.monotonic()
        response = client.post("chat/ask", json={"key": "", "query": question})
        reply = response.raise_for_status().json()
        if reply["refused"]:
            raise RuntimeError(f"{question!r} was refused: {reply['refused']}")
        first_sign = first_token = None
        html = ""
        with client.stream("GET", "chat/answers", params={"key": reply["key"]}) as events:
            for line in events.iter_lines():
                seconds = time.monotonic() - started
                if line == "event: done" and first_token:
                    return Wait(first_sign, first_token, seconds, html.count("<summary>"))
                if line.startswith("data: {"):
                    html = line
                if first_sign is None and "data-label" in html:
                    first_sign = seconds
                if first_token is None and 'class=\\"text' in html:
                    first_token = seconds
    raise RuntimeError(f"the answer to {question!r} broke off")


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return median and 95th percentile, rounded to milliseconds."""
    return {f"p{q}": round(float(np.percentile(seconds, q)), 3) for q in (50, 95)}


def measure(url: str, users: int, questions: int) -> dict:
    """Ask this many questions, `users` of them at the same time."""
    with ThreadPoolExecutor(users) as pool:
        texts = [QUESTIONS[number % len(QUESTIONS)] for number in range(questions)]
        waits = list(pool.map(lambda question: ask(url, question), texts))
    two_calls = [wait.whole for wait in waits if wait.calls >= 2]
    return {
        "first_sign": quantiles([wait.first_sign for wait in waits]),
        "first_token": quantiles([wait.first_token for wait in waits]),
        "whole": quantiles([wait.whole for wait in waits]),
        "two_calls": (quantiles(two_calls) if two_calls else {}) | {"answers": len(two_calls)},
        "calls": round(statistics.mean(wait.calls for wait in waits), 2),
        "answers": len(waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--model",
        default="models/released",
        help="a model folder or the URL of an endpoint (%(default)s)",
    )
    parser.add_argument(
        "--questions", type=int, default=40, help="for each number of users (%(default)s)"
    )
    options = parser.parse_args()
    load = os.getloadavg()[0]
    process, url = start_page(options.model)
    results = {}
    try:
        ask(url, QUESTIONS[0])  # the model is opened by the first question
        for users in USERS:
            results[str(users)] = measure(url, users, options.questions)
            print(f"{users} users: {results[str(users)]}", flush=True)
    finally:
        process.terminate()
        process.wait()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    results |= {"model": options.model, "cores_used": cores, "load_before": round(load, 2)}
    write_report("demo", results, ("torch", "transformers", "gradio"))


if __name__ == "__main__":
    main()
