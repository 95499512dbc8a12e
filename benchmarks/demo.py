"""How long customers of the page wait: for the first word of a reply and for all of it, with 1, 5 and 20 of them at a time.

    python -m benchmarks.demo                    # models/released, in the page's own process
    python -m benchmarks.demo --model http://127.0.0.1:8000/v1

in   models/released, models/router, data/store, params.yaml
out  metrics/speed/demo.json: {<users>: {first_sign, first_token, whole: {p50, p95} in seconds, two_calls: of answers with two calls or
     more whole and their number, calls, answers}, model, cores_used, load_before: the machine's load average over a minute: more than
     0 is other work on the same cores}

The customers speak to the page over HTTP as a browser does. first_sign: the routing line or a tool call is on the page.
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
    first_sign: float
    first_token: float
    whole: float
    calls: int


def page(model: str) -> tuple[subprocess.Popen, str]:
    """The running page and its address."""
    running = subprocess.Popen(
        [sys.executable, "-m", "crawl2cart.demo.cli", "demo", "--port", "0", "--model", model],
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"},
    )
    line = running.stdout.readline()
    if not line.startswith("http"):
        sys.exit("the page did not start")
    return running, line.split()[0]


def ask(url: str, question: str) -> Wait:
    """Asks as a new customer. Raises RuntimeError if there is no answer."""
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        started = time.monotonic()
        taken = (
            client.post("chat/ask", json={"key": "", "query": question}).raise_for_status().json()
        )
        if taken["refused"]:
            raise RuntimeError(f"{question!r} was refused: {taken['refused']}")
        first_sign = first_token = None
        look = ""
        with client.stream("GET", "chat/answers", params={"key": taken["key"]}) as answer:
            for line in answer.iter_lines():
                now = time.monotonic() - started
                if line == "event: done" and first_token:
                    return Wait(first_sign, first_token, now, look.count("<summary>"))
                look = line if line.startswith("data: {") else look
                first_sign = first_sign or ("data-went" in look and now) or None
                first_token = first_token or ('class=\\"text' in look and now) or None
    raise RuntimeError(f"the answer to {question!r} broke off")


def quantiles(seconds: list[float]) -> dict[str, float]:
    return {
        "p50": round(float(np.percentile(seconds, 50)), 3),
        "p95": round(float(np.percentile(seconds, 95)), 3),
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
        "--questions", type=int, default=40, help="asked under each number of users (%(default)s)"
    )
    words = parser.parse_args()
    load = os.getloadavg()[0]
    running, url = page(words.model)
    results = {}
    try:
        ask(url, QUESTIONS[0])  # the model is opened
        for users in USERS:
            with ThreadPoolExecutor(users) as pool:
                waits = list(
                    pool.map(
                        lambda number: ask(url, QUESTIONS[number % len(QUESTIONS)]),
                        range(words.questions),
                    )
                )
            results[str(users)] = {
                name: quantiles([getattr(wait, name) for wait in waits])
                for name in ("first_sign", "first_token", "whole")
            }
            twice = [wait.whole for wait in waits if wait.calls >= 2]
            results[str(users)]["two_calls"] = (quantiles(twice) if twice else {}) | {
                "answers": len(twice)
            }
            results[str(users)] |= {
                "calls": round(statistics.mean(wait.calls for wait in waits), 2),
                "answers": len(waits),
            }
            print(f"{users} users: {results[str(users)]}", flush=True)
    finally:
        running.terminate()
        running.wait()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    results |= {"model": words.model, "cores_used": cores, "load_before": round(load, 2)}
    write_report("demo", results, ("torch", "transformers", "gradio"))


if __name__ == "__main__":
    main()
