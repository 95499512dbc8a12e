"""AdamW, Muon for matrices as an option, and the learning rate over time."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from crawl2cart.lm.models.init import param_spec
from crawl2cart.lm.training.distributed import ALONE, ProcessGroup, distribute, full_tensor

# Quintic Newton-Schulz steps that drive all singular values towards 1; Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.775, 2.0315), 5
# Share of the steps in which the rate of warmup-stable-decay falls. Hägele et al. 2024, https://arxiv.org/abs/2405.18392.
DECAY_SHARE = 0.2


def adamw(model: nn.Module, weight_decay: float, beta1: float, beta2: float) -> torch.optim.AdamW:
    """AdamW over all parameters of a model, weight decay where its rules say so. The learning rate is set each step."""
    return adamw_over(model, model.named_parameters(), weight_decay, beta1, beta2)


def adamw_over(
    model: nn.Module,
    parameters: Iterable[tuple[str, Tensor]],
    weight_decay: float,
    beta1: float,
    beta2: float,
) -> torch.optim.AdamW:
    groups = {True: [], False: []}
    for name, parameter in parameters:
        groups[param_spec(model, name).decay].append(parameter)
    # fused: one pass over memory for a step, on CPU too; capturable is not wanted, so steps are counted on the CPU.
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=(beta1, beta2),
        fused=True,
    )


def muon_and_adamw(
    model: nn.Module, weight_decay: float, beta1: float, beta2: float, world: ProcessGroup = ALONE
) -> list[Optimizer]:
    """Muon over the matrices within the model, AdamW over embedding, head, biases and norms. world: processes that share Muon's work."""
    named = dict(model.named_parameters())
    inner = [name for name in named if param_spec(model, name).decay and name != "head"]
    rest = [(name, parameter) for name, parameter in named.items() if name not in inner]
    return [
        Muon([named[name] for name in inner], weight_decay, world=world),
        adamw_over(model, rest, weight_decay, beta1, beta2),
    ]


class Muon(Optimizer):
    """Momentum whose step is made orthogonal, each matrix by itself: a parameter (E, in, out) is E matrices.

    The step's size is brought to AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so learning rate and decay
    mean the same for both. world: processes that hold the same gradients, or (FSDP2) parts of them, each of which makes a share of the
    directions. These are bfloat16 before they are told, so that any number of processes takes the same step.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        weight_decay: float,
        momentum: float = 0.95,
        world: ProcessGroup = ALONE,
    ):
        super().__init__(
            parameters, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum}
        )
        self.world = world

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            rate, beta = group["lr"], group["momentum"]
            directions = []
            for number, parameter in enumerate(group["params"]):
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - beta)
                ahead = full_tensor(parameter.grad.lerp(momentum, beta))  # Nesterov's look ahead
                # Each process makes every so many-th direction and hears the others'.
                directions.append(
                    self.world.async_broadcast(
                        lambda ahead=ahead: orthogonalised(ahead), ahead, number
                    )
                )
            for parameter, direction in zip(group["params"], directions, strict=True):
                size = 0.2 * math.sqrt(max(parameter.shape[-2:]))
                parameter.mul_(1 - rate * group["weight_decay"]).add_(
                    distribute(direction(), parameter), alpha=-rate * size
                )


def orthogonalised(x: Tensor) -> Tensor:
    """U V' for each matrix U S V' of x (…, rows, columns), about: singular values end between 0.7 and 1.2. bfloat16."""
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
    """Learning rate of a step (counted from 0): a straight line up to `peak`, and down to min_lr_ratio · peak.

    schedule: `cosine`, half a cosine over all that is left; `wsd` (warmup, stable, decay), `peak` until the last DECAY_SHARE
    of the steps and then a straight line.
    """
    warmup = max(1, round(warmup_ratio * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    begin = warmup if schedule == "cosine" else max(warmup, steps - round(DECAY_SHARE * steps))
    done = min(max((step - begin) / max(1, steps - 1 - begin), 0.0), 1.0)
    height = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * height)


def optimizer_tensors(*optimizers: Optimizer) -> dict[str, Tensor]:
    """The optimizers' state as named tensors, for a checkpoint."""
    return {
        f"optimizer.{which}.{number}.{key}": full_tensor(value)
        for which, optimizer in enumerate(optimizers)
        for number, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def load_optimizers(tensors: dict[str, Tensor], *optimizers: Optimizer) -> None:
    """Puts what `optimizer_tensors` gave back; other names are left alone."""
    for which, optimizer in enumerate(optimizers):
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{which}."):
                number, key = name.split(".")[2:]
                # A count of steps has no dimension and is the same in every process.
                value = distribute(tensor, parameters[int(number)]) if tensor.dim() else tensor
                state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
