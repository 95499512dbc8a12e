"""AdamW, Muon for matrices, and the learning rate over time."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from crawl2cart.lm.models.init import param_spec
from crawl2cart.lm.training.distributed import ALONE, ProcessGroup, distribute, full_tensor

# Coefficients of a quintic Newton-Schulz step, which drives all singular values towards 1.
# Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.775, 2.0315), 5
# Last part of the steps, in which warmup-stable-decay falls. Hägele et al. 2024, arXiv 2405.18392.
DECAY_SHARE = 0.2


def adamw(model: nn.Module, weight_decay: float, beta1: float, beta2: float) -> torch.optim.AdamW:
    """Return AdamW over all parameters of a model, with weight decay where its rules say so.

    The learning rate is 0 until the training loop sets it.
    """
    return adamw_over(model, model.named_parameters(), weight_decay, beta1, beta2)


def adamw_over(
    model: nn.Module,
    parameters: Iterable[tuple[str, Tensor]],
    weight_decay: float,
    beta1: float,
    beta2: float,
) -> torch.optim.AdamW:
    """Return AdamW over some parameters of a model, given with their names."""
    decayed, free = [], []
    for name, parameter in parameters:
        (decayed if param_spec(model, name).decay else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    # fused: one pass over memory for a step, on a CPU too.
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), fused=True)


def muon_and_adamw(
    model: nn.Module, weight_decay: float, beta1: float, beta2: float, group: ProcessGroup = ALONE
) -> list[Optimizer]:
    """Return Muon over the inner matrices of a model and AdamW over everything else.

    group: processes that share Muon's work.
    """
    named = dict(model.named_parameters())
    inner = [name for name in named if param_spec(model, name).decay and name != "head"]
    rest = [(name, parameter) for name, parameter in named.items() if name not in inner]
    return [
        Muon([named[name] for name in inner], weight_decay, group=group),
        adamw_over(model, rest, weight_decay, beta1, beta2),
    ]


def check_covered(model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Assert that every parameter of the model is in exactly one group of the optimizers."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    covered = sorted(id(parameter) for group in groups for parameter in group["params"])
    wanted = sorted(id(parameter) for parameter in model.parameters())
    assert covered == wanted, "a parameter is in no optimizer group or in two"


class Muon(Optimizer):
    """Momentum whose step is made orthogonal, each matrix by itself: (E, in, out) is E matrices.

    The step has AdamW's size (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so learning rate
    and weight decay mean the same for both.
    group: processes that hold the same gradients, or parts of them (FSDP2). Each makes a share of
    the directions. These are sent as bfloat16, so any number of processes takes the same step.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        weight_decay: float,
        momentum: float = 0.95,
        group: ProcessGroup = ALONE,
    ):
        defaults = {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(parameters, defaults)
        self.group = group

    @torch.no_grad()
    def step(self) -> None:
        for options in self.param_groups:
            rate, beta = options["lr"], options["momentum"]
            directions = []
            for number, parameter in enumerate(options["params"]):
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - beta)
                ahead = full_tensor(parameter.grad.lerp(momentum, beta))  # Nesterov's look ahead
                make = partial(orthogonalised, ahead)
                directions.append(self.group.async_broadcast(make, ahead, number))
            for parameter, direction in zip(options["params"], directions, strict=True):
                size = 0.2 * math.sqrt(max(parameter.shape[-2:]))
                step = distribute(direction(), parameter)
                parameter.mul_(1 - rate * options["weight_decay"]).add_(step, alpha=-rate * size)


def orthogonalised(x: Tensor) -> Tensor:
    """Return U Vᵀ, roughly, of each matrix U S Vᵀ in x (…, rows, columns), computed in bfloat16.

    Singular values end between 0.7 and 1.2.
    """
    tall = x.size(-2) > x.size(-1)
    y = (x.mT if tall else x).bfloat16().reshape(-1, *sorted(x.shape[-2:]))
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).reshape(x.shape).to(x.dtype)


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    warmup_ratio: float,
    min_lr_ratio: float,
    schedule: str = "cosine",
) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises in a line to `peak` in the first warmup_ratio of the steps, and falls to
    min_lr_ratio · peak. schedule: `cosine` falls along half a cosine; `wsd` (warmup, stable, decay)
    stays at `peak` and falls in a line in the last DECAY_SHARE of the steps.
    """
    warmup = max(1, round(warmup_ratio * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    begin = warmup if schedule == "cosine" else max(warmup, steps - round(DECAY_SHARE * steps))
    done = min(max((step - begin) / max(1, steps - 1 - begin), 0.0), 1.0)
    height = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * height)


def optimizer_tensors(*optimizers: Optimizer) -> dict[str, Tensor]:
    """Return the optimizers' state as named tensors, for a checkpoint."""
    return {
        f"optimizer.{which}.{number}.{key}": full_tensor(value)
        for which, optimizer in enumerate(optimizers)
        for number, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def load_optimizers(tensors: dict[str, Tensor], *optimizers: Optimizer) -> None:
    """Restore what `optimizer_tensors` returned. Other names are ignored."""
    for which, optimizer in enumerate(optimizers):
        groups = optimizer.state_dict()["param_groups"]
        parameters = [p for options in optimizer.param_groups for p in options["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{which}."):
                number, key = name.split(".")[2:]
                # A step count has no dimension and is the same in every process.
                value = distribute(tensor, parameters[int(number)]) if tensor.dim() else tensor
                state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": groups})
