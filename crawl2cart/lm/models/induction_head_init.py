"""Give a trained gpt_oss induction heads: what followed the last time is what follows now.

Such heads appear by themselves after billions of tokens (Olsson et al. 2022, arXiv 2209.11895).
Here they are fitted: which tokens stand here and before can be read off the model's stream by
linear maps, which `least_squares` finds on some text. Training goes on from there.

Of the first group of heads of three layers:
- the writer, in a window layer: two heads look one and two places back and write what is there.
- the readers, which see all: queries of the token here and the one before meet keys of the tokens
  one and two before. The value is the token there; the output raises it in the head.
The readers' other heads get such values and outputs too, and learn where to look.
"""

import torch
from torch import Tensor

from crawl2cart.core.errors import UserError
from crawl2cart.lm.models.gpt_oss import GptOss, previous_token_rotation, rms_norm

# Sizes picked by hand on text that is read twice: the head's part that tells tokens by their look,
# outputs of readers and of their other heads, the writer's output in units of the stream, the score
# of a match, and the sinks of both kinds of heads.
NAMED, READ, FREE, WRITTEN, SCORE, SINK, FREE_SINK = 0.12, 3.0, 4.5, 0.7, 9.0, 4.0, 6.0
# How much a reader's two heads make of the token here and of the one before it.
ATTENTION_TO = ((1.4, 0.5), (1.0, 1.0))
RIDGE = 0.01


def least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map y = x @ weight.T + bias nearest to x (n, D), y (n, k), with y's deviation."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    weight = torch.linalg.solve(x.T @ x + RIDGE * len(x) * torch.eye(x.size(1)), x.T @ y).T
    weight = weight * (y.norm() / (x @ weight.T).norm())
    return weight, mean_y - weight @ mean_x


def input_of(model: GptOss, number: int, tokens: Tensor) -> tuple[Tensor, float]:
    """Return the attention input of a block (B, T, D) for tokens (B, T), and the stream's size."""
    found = []
    hook = model.blocks[number].register_forward_pre_hook(
        lambda block, given: found.append(given[0])
    )
    model(tokens)
    hook.remove()
    return rms_norm(found[0], model.blocks[number].attention_norm), found[
        0
    ].square().mean().sqrt().item()


def orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator))[0]


def layers(model: GptOss) -> tuple[int, list[int]]:
    """Return the writer, a window layer, and its readers, the later layers that see all."""
    writer = max(
        number
        for number in range(min(3, len(model.blocks)))
        if model.blocks[number].window is not None
    )
    return writer, [
        number
        for number in range(writer + 1, len(model.blocks))
        if model.blocks[number].window is None
    ]


@torch.no_grad()
def add_induction_heads(model: GptOss, tokens: Tensor, family: Tensor, seed: int) -> None:
    """Puts induction heads into a model, in place.

    tokens (B, T): text to fit on. family (V,): tokens of one number count as the same word
    (embedding_init.token_classes).
    Raises UserError if the model is too narrow or has one head to a group.
    """
    generator = torch.Generator().manual_seed(seed)
    width, d = model.embedding.size(1), model.blocks[0].head_dim
    if width < 2 * d or len(model.blocks[0].query) < 2 * len(model.blocks[0].key):
        raise UserError(
            f"Induction heads need a hidden_size of two heads ({2 * d}, it is {width}) and two "
            "heads to each group of keys. Change profiles.<name>.models.gpt_oss."
        )
    reach = 2  # how far back the writer looks
    # What stands for a token, deviation 1: the mean of its family's embeddings, projected.
    means = torch.zeros(int(family.max()) + 1, width).index_add_(0, family, model.embedding)
    words = (means / family.bincount()[:, None])[family]
    words = (words - words.mean(0)) / words.std()
    code = words @ orthogonal(width, d, generator)
    said = orthogonal(width, width, generator)  # turns a word into what raises it in the head

    def stands(table: Tensor, back: int) -> Tensor:
        """Return rows of the table (n, k) for the tokens `back` places before each."""
        return table[tokens[:, reach - back : tokens.size(1) - back]].flatten(0, 1)

    def stream(number: int) -> tuple[Tensor, float]:
        read, size = input_of(model, number, tokens)
        return read[:, reach:].flatten(0, 1), size

    number, readers = layers(model)
    read, size = stream(number)
    block = model.blocks[number]
    block.query[: 2 * d], block.key[:d], block.sinks[:2] = 0, 0, 0
    block.key_bias[:d] = previous_token_rotation(0, d)
    block.query_bias[: 2 * d] = torch.cat(
        [previous_token_rotation(1, d), previous_token_rotation(2, d)]
    )
    block.value[:d], block.value_bias[:d] = least_squares(read, stands(code, 0))
    block.output[:, : 2 * d] = WRITTEN * size * orthogonal(width, 2 * d, generator)

    # Rotary positions hardly turn the slow half of the pairs: every other one for each token.
    one = torch.cat([torch.arange(d // 4, d // 2, 2), torch.arange(d - d // 4, d, 2)])
    two = one + 1
    for number in readers:
        read, _ = stream(number)
        block = model.blocks[number]
        here, before, earlier = (
            least_squares(read, stands(code[:, : len(one)], back)) for back in (0, 1, 2)
        )
        (
            block.query[: 2 * d],
            block.query_bias[: 2 * d],
            block.key[:d],
            block.key_bias[:d],
            block.sinks[:2],
        ) = 0, 0, 0, 0, SINK
        for rows, (weight, bias) in ((one, before), (two, earlier)):
            block.key[rows], block.key_bias[rows] = SCORE**0.5 * weight, SCORE**0.5 * bias
        for head, shares in enumerate(ATTENTION_TO):
            for rows, (weight, bias), share in zip((one, two), (here, before), shares, strict=True):
                block.query[head * d + rows], block.query_bias[head * d + rows] = (
                    share * SCORE**0.5 * weight,
                    share * SCORE**0.5 * bias,
                )
        heads = len(block.query) // len(block.key)
        for group, gain in ((0, READ), (1, FREE))[: len(block.key) // d]:
            seen = orthogonal(width, d, generator)
            own = slice(group * d, (group + 1) * d)
            block.value[own], block.value_bias[own] = least_squares(read, stands(words @ seen, 0))
            block.output[:, group * heads * d : (group + 1) * heads * d] = gain * (
                said @ seen
            ).repeat(1, heads)
        block.sinks[heads : 2 * heads] = FREE_SINK
    model.head += NAMED * words @ said.T
