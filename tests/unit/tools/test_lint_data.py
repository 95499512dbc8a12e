"""The data that ships has no fault, and the checks find the faults that they are there for."""

import re
from dataclasses import replace

import pytest

from tests.conftest import ROOT
from tools import lint_web
from tools.lint_web import Web, read_web
from tools.text_stats import unique_share, xz_ratio


@pytest.fixture(scope="module")
def web() -> Web:
    return read_web(ROOT / "data")


def with_text(web: Web, text: str) -> tuple[Web, str]:
    """The web with `text` behind the first page to keep, and that page's URL."""
    page = web.keep[0]
    changed = replace(page, body=f"{page.body}\n\n{text}")
    return replace(web, pages=web.pages | {page.url: changed}), page.url


def with_label(web: Web, url: str, **fields: object) -> Web:
    return replace(web, labels=web.labels | {url: replace(web.labels[url], **fields)})


@pytest.mark.parametrize("check", lint_web.WEB_CHECKS, ids=lambda check: check.__name__)
def test_data_web_has_no_fault(check, web):
    assert list(check(web)) == []


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lint_web.web_unmarked_spans, "Write to odile@saltnes.example"),
        (lint_web.web_unmarked_spans, "It answers at 192.0.2.77."),
        (lint_web.web_plain_labels, "Lorem ipsum dolor sit amet."),
        (lint_web.web_plain_labels, "[a friend](https://other.example/)"),
    ],
)
def test_a_text_that_its_labels_do_not_mention_is_a_fault(check, text, web):
    changed, url = with_text(web, text)
    assert [fault.startswith(url) for fault in check(changed)] == [True]


def test_a_sentence_of_another_page_is_a_fault(web):
    other = re.search(r"[A-Z][^.!?\n*_`\[]{80,}\.", web.prose[web.keep[1].url])[0]
    changed, url = with_text(web, other)
    assert any(url in fault and web.keep[1].url in fault for fault in lint_web.web_prose(changed))


def test_labels_that_contradict_each_other_are_faults(web):
    kept = web.keep[0].url
    dropped = next(url for url, label in web.labels.items() if label.reason == "navigation")
    assert any(kept in fault for fault in lint_web.web_labels(with_label(web, kept, keep=False)))
    assert list(lint_web.web_labels(with_label(web, dropped, reason="language")))
    assert list(lint_web.web_spans(with_label(web, kept, personal_data=99)))
    copy = next(url for url, label in web.labels.items() if label.duplicate_of)
    assert list(lint_web.web_copies(with_label(web, copy, duplicate_of=kept)))


def test_too_few_pages_are_a_fault(web):
    few = dict(list(web.pages.items())[:100])
    assert any(
        fault.startswith("pages: 100") for fault in lint_web.web_sizes(replace(web, pages=few))
    )


def test_stamped_pages_are_a_fault(web):
    """The same advice about every product, as generators of such webs make it."""
    stamped = [
        f"Looking for a {product.category}? The {product.name} costs ${product.price}. "
        "We tested it for 30 days."
        for product in web.products
    ]
    texts = [*web.prose.values(), *stamped]
    assert unique_share(texts, web.names) < 0.97
    assert xz_ratio(stamped) > 3.0


def test_real_names_and_domains_are_faults(tmp_path, web):
    (tmp_path / "page.md").write_text("A pair of AirPods from bristol-lamps.co.uk")
    faults = list(lint_web.web_fiction(replace(web, folder=tmp_path)))
    assert len(faults) == 2 and "AirPods" in faults[0] and "bristol-lamps.co.uk" in faults[1]
