"""Decoding: with a state as without, in any batch, and by the command line."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2cart.lm.formats.save import MODELS, save_model
from crawl2cart.lm.inference.engine import Engine, seeded_draws
from crawl2cart.lm.inference.engine import main as command
from crawl2cart.lm.inference.sampling import sample_token
from tests.small_models import VOCABULARY, make, shaken, small_tokenizer, some_tokens


def prompts_of(lengths: list[int]) -> list[list[int]]:
    return [some_tokens(1, length, seed=length)[0].tolist() for length in lengths]


def greedy(model, prompts: list[list[int]], count: int, **options) -> list[list[int]]:
    return Engine(model).generate(prompts, count, temperature=0, **options)


@pytest.mark.parametrize("name", MODELS)
def test_generation_with_a_state_equals_reading_all_again(name):
    model = shaken(make(name))
    prompt = some_tokens(1, 30)[0].tolist()
    whole = list(prompt)
    for _ in range(40):  # past the window of 8
        with torch.no_grad():
            hidden, _ = model(torch.tensor([whole]))
            whole.append(int(model.logits(hidden[0, -1]).argmax()))
    assert greedy(model, [prompt], 40) == [whole[30:]]


@pytest.mark.parametrize("name", MODELS)
def test_prompts_of_other_lengths_in_a_batch_change_nothing(name):
    model, prompts = shaken(make(name)), prompts_of([3, 40, 17, 40])
    assert greedy(model, prompts, 12) == [greedy(model, [prompt], 12)[0] for prompt in prompts]


@pytest.mark.parametrize("name", ["gru", "gpt_oss"])
def test_rows_that_end_leave_the_batch_and_others_go_on(name):
    model, prompts = shaken(make(name)), prompts_of([5, 9, 5, 12, 9, 7])
    free = greedy(model, prompts, 15)
    stops = [free[0][3], free[1][6], free[2][9]]
    ends = [next((i for i, number in enumerate(ids) if number in stops), 14) for ids in free]
    assert len(set(ends)) > 2
    expected = [ids[: end + 1] for ids, end in zip(free, ends, strict=True)]
    assert greedy(model, prompts, 15, stop_ids=stops) == expected


def test_a_prefix_that_was_read_once_changes_nothing():
    model, start = shaken(make("gpt_oss")), some_tokens(1, 20, seed=8)[0].tolist()
    prompts = [start + prompt for prompt in prompts_of([1, 30, 12])]
    engine = Engine(model)
    prefix = engine.prefix(start)
    for _ in range(2):  # it can be used again
        assert greedy(model, prompts, 12, prefix=prefix) == greedy(model, prompts, 12)
    with pytest.raises(ValueError, match="prefix"):
        greedy(model, [start[:-1] + [1, 2]], 12, prefix=prefix)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_draws_by_its_place_in_the_batch_whatever_the_lengths(name):
    model, draws, prompts = shaken(make(name)), seeded_draws(12, 3, seed=4), prompts_of([3, 17, 3])
    together = Engine(model).generate(prompts, 12, draws=draws)
    for row, (prompt, ids) in enumerate(zip(prompts, together, strict=True)):
        alone = [
            Engine(model).generate([prompt], 12, draws=lambda step, _, p=place: draws(step, [p]))
            for place in range(3)
        ]
        assert [other == [ids] for other in alone] == [place == row for place in range(3)]


def test_a_row_ends_where_the_model_has_no_position_left():
    model, prompts = shaken(make("gpt_oss", max_position_embeddings=24)), prompts_of([20, 24, 12])
    assert [len(ids) for ids in greedy(model, prompts, 9)] == [5, 1, 9]
    with pytest.raises(ValueError, match="prompt of 25 tokens.*max_position_embeddings, 24"):
        greedy(model, prompts_of([25]), 9)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty"):
        greedy(make("gru"), [[1], []], 3)


def test_unused_rows_of_the_table_are_never_written():
    model = make("mlp")
    with torch.no_grad():
        model.head[VOCABULARY:] = 100 * model(some_tokens(1, 5))[0][0, -1]  # the likeliest by far
    assert max(greedy(model, some_tokens(1, 5).tolist(), 20)[0]) < VOCABULARY


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=6),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.one_of(st.none(), st.integers(1, 6)),
    st.floats(0.05, 1.0),
)
def test_choice_follows_the_probabilities(eighths, temperature, top_k, top_p):
    """The share of draws that give an id is its probability among those that are left."""
    logits = torch.tensor(eighths) / 8
    p = (logits / temperature).softmax(-1)
    order = sorted(range(len(p)), key=lambda i: (-p[i].item(), i))[:top_k]
    kept, reached = [], 0.0
    for i in order:
        if reached < top_p - 1e-6:
            kept.append(i)
        elif reached < top_p + 1e-6:
            return  # a tie that rounding decides
        reached += p[i].item()
    draw = (torch.arange(4000) + 0.5) / 4000
    ids = sample_token(logits.expand(4000, -1), temperature, top_k, top_p, draw)
    shares = torch.bincount(ids, minlength=len(p)) / 4000
    expected = torch.zeros(len(p))
    expected[kept] = p[kept] / p[kept].sum()
    torch.testing.assert_close(shares, expected, rtol=0, atol=5e-4)
    assert sample_token(logits[None], 0, None, 1.0, None).item() == order[0]


# The command line


@pytest.mark.parametrize("name", ["gru", "gpt_oss"])
def test_the_command_goes_on_with_a_model(name, tmp_path, monkeypatch, capsys):
    model, tokenizer = shaken(make(name)), small_tokenizer()
    save_model(model, tmp_path, tokenizer)
    end = tokenizer.encode_single_token("<|endoftext|>")
    options = ["--tokens", "6", "--seed", "3", "--top-k", "50"]
    monkeypatch.setattr(sys, "argv", ["engine", str(tmp_path), "The kettle", *options])
    command()
    prompt = [end, *tokenizer.encode_ordinary("The kettle")]
    draws = seeded_draws(6, 1, seed=3)
    (ids,) = Engine(model).generate([prompt], 6, [end], 0.8, 50, 0.95, draws)
    text = tokenizer.decode([number for number in ids if number != end])
    assert capsys.readouterr().out == f"The kettle{text}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--top-k", "0"],
        ["--top-p", "0"],
        ["--top-p", "1.5"],
        ["--temperature", "-1"],
        ["--tokens", "0"],
    ],
)
def test_the_command_refuses_what_means_nothing(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["engine", "models/pretrain/gru", "The kettle", *words])
    with pytest.raises(SystemExit):
        command()
    assert f"{words[0]} must be" in capsys.readouterr().err


def test_the_command_names_a_folder_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["engine", str(tmp_path / "gru"), "The kettle"])
    with pytest.raises(SystemExit, match=str(tmp_path / "gru")):
        command()


def test_the_command_writes_each_token_as_soon_as_it_is_known(tmp_path):
    save_model(shaken(make("gru")), tmp_path, small_tokenizer())
    program = [sys.executable, "-um", "crawl2cart.lm.inference.engine", tmp_path, "The kettle"]
    with subprocess.Popen([*program, "--tokens", "100000"], stdout=subprocess.PIPE) as writing:
        start = writing.stdout.read(20)  # comes long before the last token
        assert writing.poll() is None
        writing.kill()
    assert start.startswith(b"The kettle")
