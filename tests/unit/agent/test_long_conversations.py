"""What a local writer does with conversations that its model can not hold."""

import pytest
import torch
from transformers import AutoTokenizer

from crawl2cart.agent.local_writer import LocalWriter
from crawl2cart.core.device import Device
from crawl2cart.lm.inference.engine import Engine
from crawl2cart.lm.tokenizer import save_tokenizer
from tests.small_models import make, shaken, small_tokenizer


@pytest.fixture
def writer(tmp_path) -> LocalWriter:
    save_tokenizer(small_tokenizer(), tmp_path)
    model = shaken(make("gpt_oss", max_position_embeddings=2000))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    return LocalWriter(Engine(model), tokenizer, Device("cpu", torch.float32), max_new_tokens=4)


def test_a_conversation_that_is_too_long_gets_no_text_and_others_theirs(writer):
    short, long = ([{"role": "user", "content": "a" * length}] for length in (5, 4000))
    (alone,) = writer([short], [])
    assert alone
    assert writer([long, short], []) == ["", alone]
    assert writer([long], []) == [""]
