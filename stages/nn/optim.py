"""AdamW with decay on matrices only, and the learning rate over time."""

import math

import torch
from torch import Tensor, nn

from stages.nn.initial import rule_of


def adamw(model: nn.Module, weight_decay: float, beta1: float, beta2: float) -> torch.optim.AdamW:
    """AdamW over all parameters of a model, weight decay where its rules say so. The learning rate is set each step."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[rule_of(model, name).decay].append(parameter)
    assert sum(map(len, groups.values())) == len(list(model.parameters())), "a parameter in no group or in two"
    # fused: one pass over memory for a step, on CPU too; capturable is not wanted, so steps are counted on the CPU.
    return torch.optim.AdamW([{"params": groups[True], "weight_decay": weight_decay},
                              {"params": groups[False], "weight_decay": 0.0}],
                             lr=0.0, betas=(beta1, beta2), fused=True)


def learning_rate(step: int, steps: int, peak: float, warmup_share: float, final_share: float) -> float:
    """Learning rate of a step (counted from 0): a straight line up to `peak`, then half a cosine to final_share · peak."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (final_share + (1 - final_share) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, for a checkpoint."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{number}.{key}": value for number, entry in state.items() for key, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts what `optimizer_tensors` gave back; other names are left alone."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
