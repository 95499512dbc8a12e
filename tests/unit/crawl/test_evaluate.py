"""Measures against labels, by hand; and label files with a wrong line."""

import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.crawl.embedded_web.sites import Page, read_sites
from crawl2cart.crawl.evaluate import (
    Label,
    Span,
    copy_quality,
    keep_errors,
    keep_quality,
    pii_quality,
    read_labels,
    read_spans,
    read_topics,
    token_f1,
)
from tests.unit.crawl.samples import write_site, written

LABELS = "url,verdict,reason,language,duplicate_of,personal_data"
SPANS = "url,kind,text,mask"
TOPICS = "url,topic"


def test_keep_quality_by_hand(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        f"{LABELS}\na,keep,,en,,0\nb,keep,,en,,0\nc,drop,navigation,en,,0\nd,drop,language,de,,0\n"
        "e,keep,,en,,2\n"
    )
    labels = read_labels(path)
    quality = keep_quality({"a", "b", "c", "e"}, labels, {"a", "b", "c", "d"})
    assert (quality["n"], quality["precision"], quality["recall"]) == (4, 2 / 3, 1.0)
    assert 0 < quality["precision_low"] < 2 / 3 < quality["precision_high"] < 1
    reasons = {"a": "", "b": "words", "c": "", "d": "language", "e": "words", "f": ""}
    assert keep_errors(reasons, labels, {"a", "b", "c", "d", "f"}) == {
        "false_positives": {"navigation": 1},
        "false_negatives": {"words": 1},
    }


def test_copy_quality_by_hand():
    originals = {"a": "", "b": "a", "c": "a", "d": "", "e": "", "f": "e", "g": "d"}
    labels = {url: Label(True, "", "en", original, 0) for url, original in originals.items()}
    everything, clusters = set(labels), [["b", "a", "c"], ["d", "e"]]
    assert copy_quality(clusters, everything, labels, everything) == {
        "n": 4,
        "recall": 0.5,
        "false_merges": 1,
    }
    assert copy_quality(clusters, everything - {"g"}, labels, {"b", "g"}) == {
        "n": 1,
        "recall": 1.0,
        "false_merges": 0,
    }
    assert copy_quality([], set(), labels, everything) == {"n": 0, "false_merges": 0}


def test_token_f1_by_hand():
    assert token_f1("the old dog", "The dog ran off") == 2 * 2 / 7
    assert token_f1("", "") == 0


@pytest.fixture
def page(tmp_path) -> Page:
    body = "Write to odile@saltnes.example or ring 555-0163.\n"
    body += '@@ comment author="Bo" date="2024-01-02"\nRing 555-0117 instead.\n'
    return read_sites(write_site(tmp_path / "sites", winch=written(body=body)))[0]


def test_personal_data_counts_under_its_own_kind_only(page):
    def quality(*marked: tuple[str, str]) -> tuple[float, float]:
        spans = {page.url: [Span(kind, text, True) for kind, text in marked]}
        measured = pii_quality([page], spans)
        return measured["precision"], measured["recall"]

    email, ring, comment = (
        ("email", "odile@saltnes.example"),
        ("phone", "555-0163"),
        ("phone", "555-0117"),
    )
    assert quality(email, ring, comment) == (1, 1)
    assert quality(ring, comment) == (2 / 3, 1)
    assert quality(email, ("ip", "555-0163")) == (1 / 3, 1 / 2)
    assert quality(("phone", "not on the page")) == (0, 0)


@pytest.mark.parametrize(
    ("read", "lines", "number"),
    [
        (read_labels, ["url,verdict"], 1),
        (read_labels, [LABELS, "a,maybe,,en,,0"], 2),
        (read_labels, [LABELS, "z,keep,,en,,0", "a,keep,en,0"], 3),
        (read_labels, [LABELS, "a,keep,,en,,many"], 2),
        (read_labels, [LABELS, "a,keep,,en,,0", "a,keep,,en,,0"], 3),
        (read_spans, [SPANS, "z,phone,555-0117,yes", "a,mail,x@y.example,yes"], 3),
        (read_spans, [SPANS, "a,email,x@y.example,maybe"], 2),
        (read_spans, [SPANS, "a,email,,yes"], 2),
        (read_spans, [SPANS, "a,email,yes"], 2),
        (read_topics, ["url,subject"], 1),
        (read_topics, [TOPICS, "https://a.example/,shop"], 2),
        (read_topics, [TOPICS, "https://a.example/,other", "https://a.example/,shopping"], 3),
    ],
)
def test_a_wrong_line_is_named(read, lines, number, tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("\n".join([*lines, ""]))
    with pytest.raises(UserError, match=f"file.csv:{number}:"):
        read(path)


def test_spans_are_read_by_url(tmp_path):
    path = tmp_path / "personal.csv"
    path.write_text(f"{SPANS}\nz,phone,555-0117,yes\nz,ip,2.5.3.1,no\n")
    spans = [Span("phone", "555-0117", True), Span("ip", "2.5.3.1", False)]
    assert read_spans(path) == {"z": spans}
