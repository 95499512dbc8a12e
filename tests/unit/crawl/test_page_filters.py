"""The rules for one page: the first that fails names the reason, and every rule can be asked."""

import pytest

from crawl2cart.core.errors import UserError
from crawl2cart.core.params import read_params
from crawl2cart.crawl.filters.blocklist import is_blocked, read_hosts, url_words
from crawl2cart.crawl.filters.page_filters import SHARD, Page, checks, filter_page
from crawl2cart.crawl.warc.records import Record
from tests.conftest import ROOT
from tests.unit.crawl.samples import GERMAN, PLAIN_PROSE, PROSE

LIMITS = read_params(ROOT / "params.yaml").filter
HOSTS = frozenset({"spam.example", "cheap.clicks.example"})
PARAGRAPHS = "".join(
    f"<p>{part}</p>" for part in PROSE.split("\n\n") if not part.startswith(("|", "-", "##"))
)
URL = "https://saltnes.example/boats/winch.html"


def record(
    body: str = PARAGRAPHS, url: str = URL, status: int = 200, content_type: str = "text/html"
) -> Record:
    page = f"<html><body><article>{body}</article></body></html>"
    return Record(url, status, content_type, "", page.encode(), False)


def test_a_good_page_is_kept_with_its_text_language_and_key():
    row = filter_page(record(), LIMITS, HOSTS)
    assert list(row) == SHARD.names
    assert (row["reason"], row["language"]) == ("", "en")
    assert row["language_score"] > LIMITS.language_threshold
    assert "momentum" in row["text"] and len(row["key"]) == 32


LEGAL = (
    "<p>The Supplier shall not be liable for any consequential loss, whatever its cause may have "
    "been.</p><p>Personal data is processed on the legal basis of consent, which may be withdrawn "
    "without prejudice to the foregoing.</p><p>All of our contracts are governed by the applicable "
    "law, and the competent authority has exclusive jurisdiction herein.</p>"
)
LOREM = "<p>Lorem ipsum comes here, says the man who has to write the page by noon.</p>"
BAD = {
    "no_web_page": record(url="dns:saltnes.example"),
    "http_status": record(status=503),
    "blocked_host": record(url="https://www.spam.example/boats.html"),
    "url_words": record(url="https://saltnes.example/sexy-singles/near-you"),
    "too_large": record("<!--" + "x" * LIMITS.max_page_bytes + "-->"),
    "content_type": record(content_type="image/png"),
    "too_many_nodes": record("<br>" * (LIMITS.max_page_nodes + 1)),
    "too_deep": record("<div>" * 2000),
    "no_text": record("<script>x</script>"),
    "language": record("<p>" + GERMAN * 9),
    "words": record("<p>The winch was mended by Odile and she had a thermos with her."),
    "lorem_ipsum": record(PARAGRAPHS + LOREM),
    "legal_phrases": record(LEGAL),
}


@pytest.mark.parametrize("reason", BAD)
def test_the_first_rule_that_fails_names_the_reason_and_its_score(reason):
    row = filter_page(BAD[reason], LIMITS, HOSTS)
    assert row["reason"] == reason and row["key"] == ""
    failed = [check for check in checks(Page(BAD[reason]), LIMITS, HOSTS) if not check.ok]
    assert (failed[0].rule, failed[0].score) == (reason, row["score"])
    assert not failed[0].low <= row["score"] <= failed[0].high


def test_rules_behind_a_failure_can_be_asked():
    page = Page(BAD["blocked_host"])
    rules = [check.rule for check in checks(page, LIMITS, HOSTS)]
    assert rules == [check.rule for check in checks(Page(record()), LIMITS, HOSTS)]
    assert {"language", "words", "sentences", "short_lines", "joined_words"} <= set(rules)
    assert page.language == "en" and page.text


def test_personal_data_is_masked_in_kept_and_in_removed_pages():
    personal = (
        "<p>Ring Odile on 555-0163 or write to odile@saltnes.example, who was at 192.0.2.44 with "
        "4111 1111 1111 1111.</p>"
    )
    for body in (PARAGRAPHS + personal, personal):
        row = filter_page(record(body), LIMITS, HOSTS)
        assert [row[f"pii_{kind}"] for kind in ("email", "card", "ip", "phone")] == [1, 1, 1, 1]
        assert "saltnes.example" not in row["text"] and "555-0163" not in row["text"]
        assert "|||PHONE_NUMBER|||" in row["text"]


def test_text_that_others_have_extracted_is_taken_as_it_is():
    row = filter_page(Record(URL, 200, "text/plain", "", PLAIN_PROSE.encode(), True), LIMITS, HOSTS)
    assert row["reason"] == "" and row["text"].split() == PLAIN_PROSE.split()


def test_several_languages_can_be_kept():
    both = LIMITS.model_copy(update={"languages": "en, de"})
    german = filter_page(BAD["language"], both, HOSTS)
    assert german["language"] == "de" and german["reason"] != "language"
    assert filter_page(record(), both, HOSTS)["reason"] == ""
    only_german = LIMITS.model_copy(update={"languages": "de"})
    assert filter_page(record(), only_german, HOSTS)["reason"] == "language"


@pytest.mark.parametrize(
    ("url", "blocked"),
    [
        ("https://spam.example/", True),
        ("http://www.spam.example:8080/a", True),
        ("https://user@SPAM.example./", True),
        ("https://notspam.example/", False),
        ("https://spam.example.org/", False),
        ("https://clicks.example/", False),
        ("https://a.cheap.clicks.example/", True),
        ("https://other.example/?u=https://spam.example/", False),
        ("https://[::1", False),
        ("dns:spam.example", False),
    ],
)
def test_a_blocked_host_is_meant_with_all_below_it(url, blocked):
    assert is_blocked(url, HOSTS) == blocked


def test_words_of_an_address_are_whole_words():
    assert url_words("https://a.example/essex-sextant/middlesex.html") == 0
    assert url_words("https://sexy.example/webcams/SEXY") == 2


def test_a_list_of_hosts_is_read_and_a_bad_line_named(tmp_path):
    file = tmp_path / "hosts.txt"
    file.write_text("# by hand\nSpam.example.  # since May\n\nbad-clicks.example\n")
    assert read_hosts(file) == {"spam.example", "bad-clicks.example"}
    file.write_text("spam.example\nhttps://clicks.example/\n")
    with pytest.raises(UserError, match="hosts.txt:2"):
        read_hosts(file)
    with pytest.raises(UserError, match="blocked_hosts"):
        read_hosts(tmp_path / "none.txt")
