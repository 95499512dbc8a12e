"""Answers of a tuned model to the turns of recorded dialogues, in batches.

One path for the small model and for gpt-oss-20b: Hugging Face `generate` over our chat template.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from crawl2cart.core.device import Device
from crawl2cart.core.progress import progress
from crawl2cart.lm.formats.harmony import STOPS

LOOK_BATCH, LOOK_TOKENS = (
    16,
    120,
)  # where a training stage looks at validation: turns answered at once, new tokens of each at most


def whole_characters(text: str) -> str:
    """Without the half of a character that the last token may have brought."""
    return text.rstrip("\ufffd")


class Relay(BaseStreamer):
    """Tells `hear` the text of the tokens so far, with its markers, each time `generate` has chosen one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hear: Callable[[str], None]):
        self.tokenizer, self.hear = tokenizer, hear
        self.tokens: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:  # the prompt comes first
            self.tokens = []
            return
        self.tokens += value.flatten().tolist()
        self.hear(whole_characters(self.tokenizer.decode(self.tokens)))

    def end(self) -> None:
        pass


class Answerer:
    """Writes the assistant's next turn after a list of messages.

    temperature 0 means greedy. A turn ends with one of STOPS, or after max_new_tokens. guide: makes what keeps a batch to the form of
    calls, for these tools and so many rows (constrained.py).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
        max_new_tokens: int = LOOK_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        guide: Callable[[Sequence[dict], int], LogitsProcessor] | None = None,
    ):
        self.guide = guide
        self.model, self.tokenizer, self.device = model.eval(), tokenizer, device
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
            if temperature
            else {}
        )
        self.generation = GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(list(STOPS)),
            **sampling,
        )

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
        texts = [
            self.tokenizer.apply_chat_template(
                prompt, tools=tools, add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        batch = self.tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        batch = batch.to(self.model.device)
        guides = LogitsProcessorList([self.guide(tools, len(prompts))] if self.guide else [])
        with self.device.autocast():
            tokens = self.model.generate(
                **batch,
                generation_config=self.generation,
                logits_processor=guides,
                streamer=Relay(self.tokenizer, hear) if hear else None,
            )
        new = tokens[:, batch["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=False)
        return [cut_after_stop(text) for text in texts]


def cut_after_stop(text: str) -> str:
    """The text up to and with its first stop token: in a batch, shorter answers are padded behind it."""
    ends = [text.index(stop) + len(stop) for stop in STOPS if stop in text]
    return text[: min(ends)] if ends else text


def answer_turns(
    answerer: Answerer, rows: Sequence[dict], batch: int, name: str = "answers"
) -> list[str]:
    """One answer for each row of `to_examples`, longest prompts together so that little is padding; in the rows' order."""
    order = sorted(
        range(len(rows)), key=lambda i: sum(len(str(message)) for message in rows[i]["prompt"])
    )
    answers = [""] * len(rows)
    starts = range(0, len(order), batch)
    for start in progress(starts, name, "batch"):
        chosen = order[start : start + batch]
        for i, text in zip(
            chosen,
            answerer([rows[i]["prompt"] for i in chosen], rows[chosen[0]]["tools"]),
            strict=True,
        ):
            answers[i] = text
    return answers
