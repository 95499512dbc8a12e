"""The tokenizer against tiktoken's and Hugging Face's, and token files against their corpus."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from transformers import AutoTokenizer

from crawl2cart.core.errors import UserError
from crawl2cart.lm import tokenizer as tokenizers
from stages import encode
from tests.conftest import ROOT

RANKS = ROOT / "data" / "ranks" / "o200k_4096.tiktoken"
TEXTS = [
    "The kettle whistles at 96 degrees; order TB-48213 costs $1,234.50.",
    "naïve café, coöperate, Ærø",
    "🐕🐕 👩‍👩‍👧‍👦 ☕️",
    "日本語のテキスト 한국어 العربية हिन्दी",
    "tab\tand\n\nnewlines \r\n  and   trailing   ",
    "don't I'LL we've x'S ... //// --- a/b\nhttps://shop.example/?q=1&r=2#top",
    "IDs: LMP-2041 KET-0007 and 1234567890, ٣٤٥, ½",
    "camelCase and ALLCAPS and MiXeD_under_scores",
    "\x00\x7f\u200b\ufeff",
    "",
    " ",
]
DIALOGUE = (
    "<|start|>user<|message|>Is LMP-2041 in stock?<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.stock <|constrain|>json"
    '<|message|>{"ids": [1]}<|call|>'
)


@pytest.fixture(scope="module")
def tokenizer() -> tiktoken.Encoding:
    return tokenizers.encoding(tokenizers.read_ranks(RANKS))


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.save_tokenizer(tokenizer, folder)
    return folder


def test_the_prefix_is_the_head_of_the_published_table(shared_data):
    whole = (shared_data / "tokenizer" / "o200k_base.tiktoken").read_bytes()
    assert (
        hashlib.sha256(whole).hexdigest()
        == "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
    )
    assert RANKS.read_bytes().splitlines() == whole.splitlines()[:4096]


def test_pattern_is_o200k_s_with_one_digit_a_token_and_e_mails_set_apart(monkeypatch):
    # The pattern, without a download.
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    published = openai_public.o200k_base()["pat_str"].replace(r"\p{N}{1,3}", r"\p{N}")
    assert f"{tokenizers.BEFORE_EMAIL}|{published}" == tokenizers.PATTERN


def test_every_token_but_a_byte_is_made_of_two_earlier_ones():
    ranks = tokenizers.read_ranks(RANKS)
    for token, rank in ranks.items():
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        assert len(token) == 1 or any(
            ranks.get(a, rank) < rank and ranks.get(b, rank) < rank for a, b in halves
        )
    assert all(bytes([byte]) in ranks for byte in range(256))


@pytest.fixture(scope="module")
def fast(folder):
    return AutoTokenizer.from_pretrained(folder)


def check_both(tokenizer, fast, text: str) -> None:
    """Assert that tiktoken and Hugging Face give the same ids, with the bytes of the text."""
    ids = tokenizer.encode(text, allowed_special="all")
    assert fast(text)["input_ids"] == ids
    assert fast.decode(ids) == tokenizer.decode(ids) == text
    lengths = tokenizers.token_bytes(tokenizer)[ids]
    assert (lengths[np.array(ids) >= 4096] == 0).all()
    specials = [tokenizer.decode([number]) for number in ids if number >= 4096]
    assert lengths.sum() + len("".join(specials).encode()) == len(text.encode())


@pytest.mark.parametrize("text", [*TEXTS, DIALOGUE])
def test_hugging_face_and_tiktoken_give_the_same_ids(tokenizer, fast, text):
    check_both(tokenizer, fast, text)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_hugging_face_and_tiktoken_agree_on_any_text(tokenizer, fast, text):
    ids = tokenizer.encode(text, disallowed_special=())
    assert tokenizer.decode(ids) == text
    assert tokenizers.token_bytes(tokenizer)[ids].sum() == len(text.encode())
    assert fast(text)["input_ids"] == tokenizer.encode(text, allowed_special="all")


def test_hugging_face_and_tiktoken_agree_on_real_text(tokenizer, fast, shared_data):
    for name in ("tinyshakespeare.txt", "wikitext2_test.txt"):
        text = (shared_data / "text" / name).read_text()[:100_000]
        assert fast(text)["input_ids"] == tokenizer.encode_ordinary(text)


def test_special_tokens_follow_the_ranks_in_order(tokenizer, fast):
    tokens = tokenizers.SPECIAL_TOKENS
    ids = list(range(4096, 4096 + len(tokens)))
    assert [tokenizer.encode_single_token(token) for token in tokens] == ids
    assert fast.convert_tokens_to_ids(list(tokens)) == ids
    ends = fast.bos_token, fast.eos_token, fast.pad_token
    assert ends == ("<|startoftext|>", "<|return|>", "<|endoftext|>")
    assert fast.padding_side == "right"
    assert len(fast) == tokenizer.n_vocab == 4105


def test_digits_stand_alone(tokenizer):
    assert [tokenizer.decode([number]) for number in tokenizer.encode("48213")] == list("48213")


BEFORE = ["", "I am ", "mail ", "(", "it's (", "to:", '{"email":"', "\n", "<"]
EMAILS = ["brask67@carrowmail.example", "jeannoel.ekenhjort@example.net", "a_b-c+d@example.org"]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("email", EMAILS)
def test_an_email_is_the_same_tokens_wherever_it_stands(tokenizer, fast, before, email):
    text = f"{before}{email} please"
    alone, ids = tokenizer.encode_ordinary(email), tokenizer.encode_ordinary(text)
    start = len(tokenizer.encode_ordinary(before))
    assert ids[start : start + len(alone)] == alone
    check_both(tokenizer, fast, text)


def test_a_saved_tokenizer_is_the_same_when_loaded_and_saved_again(tokenizer, folder, tmp_path):
    loaded = tokenizers.load(folder)
    ids = tokenizer.encode(DIALOGUE, allowed_special="all")
    assert loaded.encode(DIALOGUE, allowed_special="all") == ids
    tokenizers.save_tokenizer(loaded, tmp_path)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_a_damaged_or_short_table_is_named_with_its_line(tmp_path):
    lines = RANKS.read_text().splitlines()
    table = tmp_path / "table.tiktoken"
    table.write_text("\n".join([*lines[:10], "not base64 at all", *lines[10:]]))
    with pytest.raises(UserError, match=r"table\.tiktoken:11:"):
        tokenizers.read_ranks(table)
    table.write_text("\n".join(lines[:10] + lines[11:]))
    with pytest.raises(UserError, match=r":11: rank 11"):
        tokenizers.read_ranks(table)
    with pytest.raises(UserError, match=r"4,096 ranks.*encode\.vocab_size.*5,000"):
        tokenizers.read_ranks(RANKS, 5000)


def corpus(folder: Path, files: dict[str, list[str]]) -> Path:
    folder.mkdir(parents=True)
    for name, texts in files.items():
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / name)
    return folder


def test_token_files_hold_the_documents_in_order(tokenizer, tmp_path):
    documents = corpus(
        tmp_path / "train",
        {"b.parquet": ["second 🐕", "third"], "a.parquet": ["<|endoftext|> is only text"]},
    )
    counts = encode.encode_split(documents, tmp_path / "train.bin", tokenizer, np.dtype(np.uint16))
    ids = np.fromfile(tmp_path / "train.bin", np.uint16)
    texts = ["<|endoftext|> is only text", "second 🐕", "third"]
    end = tokenizer.encode_single_token("<|endoftext|>")
    parts = np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]
    assert [tokenizer.decode(part[:-1]) for part in parts] == texts
    assert counts == {
        "documents": 3,
        "tokens": len(ids),
        "text_bytes": sum(len(text.encode()) for text in texts),
    }
    assert tokenizers.token_bytes(tokenizer)[ids].sum() == counts["text_bytes"]


@pytest.mark.parametrize("files", [{}, {"a.parquet": []}])
def test_an_empty_corpus_names_the_stage_to_run(tokenizer, tmp_path, files):
    folder = corpus(tmp_path / "val", files)
    with pytest.raises(UserError, match="dvc repro filter"):
        encode.encode_split(folder, tmp_path / "val.bin", tokenizer, np.dtype(np.uint16))
