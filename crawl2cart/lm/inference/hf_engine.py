"""Decode with a model of transformers that our own engine can not hold, by its `generate`."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer


class IdStreamer(BaseStreamer):
    """Gives on_ids the ids of a single prompt so far, each time `generate` has chosen one."""

    def __init__(self, on_ids: Callable[[list[int]], None]):
        self.on_ids = on_ids
        self.ids: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:  # the prompt comes first
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        self.on_ids(self.ids)

    def end(self) -> None:
        pass


class HfEngine:
    """Decodes with a model of transformers. What is sampled follows torch's global seed."""

    def __init__(self, model: PreTrainedModel, pad_token_id: int):
        self.model, self.pad_token_id = model.eval(), pad_token_id

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        on_ids: Callable[[list[int]], None] | None = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> list[list[int]]:
        """Return the new ids of each prompt, the id that ended it included.

        temperature 0: always the likeliest. on_ids gets the ids of a single prompt so far, at each
        step. processors change the logits of a step.
        """
        sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k or 0}
        generation = GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_token_id,
            eos_token_id=list(stop_ids),
            **(sampling | {"do_sample": True} if temperature else {}),
        )
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        padded = [
            [self.pad_token_id] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)
        ]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        ids = self.model.generate(
            input_ids=torch.tensor(padded, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            generation_config=generation,
            logits_processor=LogitsProcessorList(processors),
            streamer=IdStreamer(on_ids) if on_ids else None,
        )
        return [until_stop(row, stop_ids) for row in ids[:, longest:].tolist()]


def until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """Return the ids up to and with the first stop: in a batch, padding follows it."""
    ends = [place for place, number in enumerate(ids) if number in stop_ids]
    return ids[: ends[0] + 1] if ends else ids
