"""A local classifier that is trained in half a second, for tests that need any."""

from functools import cache

from crawl2cart.core.files import read_jsonl
from crawl2cart.router.local import LocalRouter
from crawl2cart.router.training import read_lexicon, wording_queries
from tests.conftest import ROOT

STORE, QUERIES = ROOT / "data/store", ROOT / "data/queries"


def queries(split: str) -> list[dict]:
    return read_jsonl(QUERIES / f"{split}.jsonl")


@cache
def small_router() -> LocalRouter:
    """Return a router that was trained on every tenth query and wording."""
    rows = queries("train")[::10] + wording_queries(STORE, "train")[::10]
    return LocalRouter.fit(rows, queries("validation"), read_lexicon(STORE), 3.0, 0.6)
