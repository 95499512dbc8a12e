"""Write the assistant's turns with a model on this machine.

Our own GPT-OSS decodes with our Engine, any other model and anything on a card with Hugging Face's
`generate`. Both get the same prompts and return the same kind of text. In float32 on a CPU they
write the same, ours in a fraction of the time (benchmarks/answers.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from crawl2cart.core.device import Device
from crawl2cart.core.files import read_json
from crawl2cart.core.progress import progress
from crawl2cart.lm.formats import harmony
from crawl2cart.lm.formats.from_hf import imported, load_gpt_oss, unsupported
from crawl2cart.lm.inference.engine import Engine, Prefix
from crawl2cart.lm.inference.hf_engine import HfEngine
from crawl2cart.lm.models.gpt_oss import GptOss
from crawl2cart.lm.training.trl_utils import POINTER, open_model

# Turns answered at once, and new tokens at most, where training looks at validation.
EVAL_BATCH, EVAL_TOKENS = 16, 120
# Stay in float32 under autocast: what norms, the residual stream and the sinks are made of.
PRECISE = ("attention_norm", "expert_norm", "norm", "embedding", "sinks")
# Makes what constrains a batch of so many rows to calls of these tools (constrained.py).
Guide = Callable[[Sequence[dict], int], LogitsProcessor]


class LocalWriter:
    """The assistant's next turn after each of several conversations.

    temperature 0: always the likeliest token. Otherwise tokens are drawn from the likeliest that
    together have the probability top_p. With our own engine the draws follow from seed and from
    what was drawn before. A turn ends with one of harmony.STOPS or after max_new_tokens.
    guide: only for HfEngine.
    """

    def __init__(
        self,
        engine: Engine | HfEngine,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        guide: Guide | None = None,
    ):
        self.engine, self.tokenizer, self.device, self.guide = engine, tokenizer, device, guide
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.stops = tokenizer.convert_tokens_to_ids(list(harmony.STOPS))
        self.generator = torch.Generator().manual_seed(seed)
        self._prefixes: dict[str, Prefix] = {}

    def __call__(
        self,
        conversations: Sequence[list[dict]],
        tools: list[dict],
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Return the raw text of one turn for each, with channel markers and its stop token.

        A conversation that is longer than our model takes gets an empty text.
        on_text gets the text so far, token by token; for a single conversation.
        """
        prompts = self._encode([harmony.render(turns, tools, True) for turns in conversations])
        limit = getattr(self.engine, "limit", None)
        fitting = [i for i, ids in enumerate(prompts) if not limit or len(ids) <= limit]
        texts = [""] * len(prompts)
        if not fitting:
            return texts
        with self.device.autocast():
            new_ids = self.engine.generate(
                [prompts[i] for i in fitting],
                self.max_new_tokens,
                self.stops,
                self.temperature,
                top_p=self.top_p,
                on_ids=on_text
                and (lambda ids: on_text(whole_characters(self.tokenizer.decode(ids)))),
                **self._options(tools, len(fitting)),
            )
        for i, ids in zip(fitting, new_ids, strict=True):
            texts[i] = self.tokenizer.decode(ids)
        return texts

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _options(self, tools: list[dict], rows: int) -> dict:
        """Return the arguments that only one of the engines takes."""
        if isinstance(self.engine, HfEngine):
            return {"processors": [self.guide(tools, rows)] if self.guide else []}
        return {"prefix": self._prefix(tools), "draws": self._draw}

    def _prefix(self, tools: list[dict]) -> Prefix:
        """Return the common start of all prompts with these tools, half of a prompt, read once.

        It ends with a special token, so that no token reaches beyond it.
        """
        text = harmony.prefix(tools)
        if text not in self._prefixes:
            self._prefixes[text] = self.engine.prefix(self._encode([text])[0])
        return self._prefixes[text]

    def _draw(self, _: int, rows: Sequence[int]) -> Tensor:
        return torch.rand(len(rows), generator=self.generator)


def whole_characters(text: str) -> str:
    """Return the text without the half of a character that its last token may have brought."""
    return text.rstrip("\ufffd")


def own_engine(model: GptOss, device: Device) -> Engine:
    """Return an engine with weights in the device's dtype: autocast would cast them each step."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] not in PRECISE:
            parameter.data = parameter.data.to(device.dtype)
    return Engine(model)


def is_ours(config: dict, device: Device) -> bool:
    """Return whether our own model can write what this model of transformers does."""
    is_cpu = device.kind == "cpu"
    return is_cpu and config.get("model_type") == "gpt_oss" and not unsupported(config)


def open_folder(
    folder: Path | str,
    device: Device,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
) -> LocalWriter:
    """Return a writer for a model folder, or for the hub's model that a pointer in it names."""
    folder, sampling = Path(folder), (max_new_tokens, temperature, top_p, seed)
    is_pointer = (folder / POINTER).is_file()
    if not is_pointer and is_ours(read_json(folder / "config.json"), device):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return LocalWriter(own_engine(load_gpt_oss(folder), device), tokenizer, device, *sampling)
    torch.manual_seed(seed)
    model, tokenizer = open_model(folder, device)
    return LocalWriter(HfEngine(model, tokenizer.pad_token_id), tokenizer, device, *sampling)


def writer_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: Device, max_new_tokens: int
) -> LocalWriter:
    """Return a greedy writer for a model in memory; a copy of it writes where it is our own."""
    if is_ours(model.config.to_dict(), device):
        engine = own_engine(imported(model, len(tokenizer)), device)
    else:
        engine = HfEngine(model, tokenizer.pad_token_id)
    return LocalWriter(engine, tokenizer, device, max_new_tokens)


def answer_turns(
    writer: LocalWriter, rows: Sequence[dict], batch: int, name: str = "answers"
) -> list[str]:
    """Return one text for each row of `to_examples`, in their order.

    Prompts of similar length go together, so that little is padding.
    """
    lengths = [sum(len(str(message)) for message in row["prompt"]) for row in rows]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    texts = [""] * len(rows)
    for start in progress(range(0, len(order), batch), name, "batch"):
        chosen = order[start : start + batch]
        answers = writer([rows[i]["prompt"] for i in chosen], rows[chosen[0]]["tools"])
        for i, text in zip(chosen, answers, strict=True):
            texts[i] = text
    return texts
