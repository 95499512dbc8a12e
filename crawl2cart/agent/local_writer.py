"""Writes the turns of many conversations at once with our own GPT-OSS; with Hugging Face where a folder holds another model.

All conversations begin with the tools, which are half of a prompt: their keys and values are computed once. A batch is padded at
the left, rows that have ended leave it. In float32 it writes what `generate` of transformers writes, in a fraction of the time
(benchmarks/answers.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crawl2cart.agent.hf_writer import Answerer, whole_characters
from crawl2cart.core.device import Device
from crawl2cart.core.files import read_json
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.formats.from_hf import foreign, imported, load_gpt_oss
from crawl2cart.lm.inference.sampling import head_of, sample_token
from crawl2cart.lm.models.attention import SPARE
from crawl2cart.lm.models.gpt_oss import GptOss, State
from crawl2cart.lm.training.trl_utils import POINTER, open_model

# Left in float32 under autocast too: what norms, the residual stream and the sinks are made of.
PRECISE = ("attention_norm", "expert_norm", "norm", "embedding", "sinks")
# A batch is made smaller when less than this share of its rows goes on.
LEAST_RUNNING = 0.8


class OwnWriter:
    """The assistant's next turn after each list of messages; like `Answerer`, but for our own GPT-OSS.

    temperature 0 means greedy; otherwise what is drawn, of the likeliest that together have the probability top_p, follows from `seed`
    and from what was drawn before. A turn ends with one of harmony.STOPS, or after max_new_tokens.
    """

    def __init__(
        self,
        model: GptOss,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        top_p: float = 1.0,
    ):
        self.model, self.tokenizer, self.device = model.eval(), tokenizer, device
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.stops = set(tokenizer.convert_tokens_to_ids(list(harmony.STOPS)))
        self.draws = torch.Generator().manual_seed(seed)
        self._begun: dict[str, tuple[list[int], State]] = {}
        for (
            name,
            parameter,
        ) in model.named_parameters():  # autocast would cast each of them in every step
            if name.rpartition(".")[2] not in PRECISE:
                parameter.data = parameter.data.to(device.dtype)

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[list[dict]],
        tools: list[dict],
        hear: Callable[[str], None] | None = None,
    ) -> list[str]:
        """The raw text of one turn for each prompt, with its channel markers and its stop token.

        hear: told the text so far, token by token; for a single prompt.
        """
        rows = self._ids(
            [harmony.render(prompt, tools, add_generation_prompt=True) for prompt in prompts]
        )
        with self.device.autocast():
            written = self._write(rows, *self._prefix(tools), hear)
        return [self.tokenizer.decode(ids) for ids in written]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _prefix(self, tools: list[dict]) -> tuple[list[int], State]:
        """What every prompt with these tools begins with, and the state behind it. It ends with a special token, so that no
        token reaches beyond it."""
        text = harmony.prefix(tools)
        if text not in self._begun:
            (ids,) = self._ids([text])
            _, state = self.model(torch.tensor([ids]), self.model.init_state(1))
            self._begun[text] = ids, state
        return self._begun[text]

    def _write(
        self,
        rows: list[list[int]],
        prefix: list[int],
        begun: State,
        hear: Callable[[str], None] | None,
    ) -> list[list[int]]:
        """New ids of each row, the stop that ended it included."""
        longest, known = max(map(len, rows)), len(prefix)
        assert all(row[:known] == prefix for row in rows), "every prompt begins with its tools"
        state = self._start(begun, known, longest, [longest - len(row) for row in rows])
        # Columns that the prefix fills are not computed again; of a shorter row they hold padding and a part of the prefix.
        tokens = torch.tensor([([0] * (longest - len(row)) + row)[known:] for row in rows])
        written: list[list[int]] = [[] for _ in rows]
        head = head_of(self.model)
        running = list(range(len(rows)))  # which rows those of the batch are
        for _ in range(self.max_new_tokens):
            hidden, state = self.model(tokens, state)
            ids = self._choose(hidden[:, -1] @ head)
            for row, number in zip(running, ids.tolist(), strict=True):
                if not self._ended(written[row]):
                    written[row].append(number)
            if hear:
                hear(whole_characters(self.tokenizer.decode(written[0])))
            goes_on = [place for place, row in enumerate(running) if not self._ended(written[row])]
            if not goes_on:
                break
            if len(goes_on) < LEAST_RUNNING * len(running):
                keep(state, torch.tensor(goes_on))
                ids, running = ids[goes_on], [running[place] for place in goes_on]
            tokens = ids[:, None]
        return written

    def _ended(self, ids: list[int]) -> bool:
        return bool(ids) and ids[-1] in self.stops

    def _choose(self, logits: Tensor) -> Tensor:
        if not self.temperature:
            return logits.argmax(-1)
        return sample_token(
            logits,
            self.temperature,
            None,
            self.top_p,
            torch.rand(len(logits), generator=self.draws),
        )

    def _start(self, begun: State, known: int, longest: int, padding: list[int]) -> State:
        """A state in which each row has `known` columns: its padding, then as much of the prefix as there is room for."""
        state = self.model.init_state(len(padding), torch.tensor(padding))
        state.columns = known
        for layer, first in zip(state.layers, begun.layers, strict=True):
            _, _, heads, _, size = first.buffer.shape
            layer.buffer, layer.end = (
                first.buffer.new_zeros(2, len(padding), heads, longest + SPARE, size),
                known,
            )
            for row, empty in enumerate(min(pad, known) for pad in padding):
                layer.buffer[:, row, :, empty:known] = first.buffer[:, 0, :, : known - empty]
        return state


def keep(state: State, rows: Tensor) -> None:
    """Leaves only these rows in a state."""
    state.padding = state.padding[rows]
    for layer in state.layers:
        layer.buffer = layer.buffer[:, rows]


def is_ours(config: dict, device: Device) -> bool:
    """Whether our own model can write what a model of transformers does."""
    return device.kind == "cpu" and config.get("model_type") == "gpt_oss" and not foreign(config)


def open_folder(
    folder: Path | str,
    device: Device,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
) -> OwnWriter | Answerer:
    """A writer for a model folder: our own for a GPT-OSS on a CPU, Hugging Face's for any other model and on a card."""
    folder = Path(folder)
    if not (folder / POINTER).is_file() and is_ours(read_json(folder / "config.json"), device):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return OwnWriter(
            load_gpt_oss(folder), tokenizer, device, max_new_tokens, temperature, seed, top_p
        )
    torch.manual_seed(seed)
    return Answerer(*open_model(folder, device), device, max_new_tokens, temperature, top_p)


def writer_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: Device, max_new_tokens: int
) -> OwnWriter | Answerer:
    """As `open_folder`, for a model of transformers in memory. A copy of it writes, where it is our own."""
    if is_ours(model.config.to_dict(), device):
        return OwnWriter(imported(model, len(tokenizer)), tokenizer, device, max_new_tokens)
    return Answerer(model, tokenizer, device, max_new_tokens)
