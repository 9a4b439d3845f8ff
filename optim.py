"""Optimizers, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Dict, Iterable, Iterator, List, Tuple

import torch
from torch import Tensor, nn

from engines.options import TrainingOptions
from options import UserError

EPSILON = 1e-6  # Graphcore's; kind to gradients in half precision
FIRST_MOMENT_DECAY = 0.9  # Adam's usual one
CLIP_EPSILON = 1e-6  # added to a norm by `torch.nn.utils.clip_grad_norm_`
_WARMUP_SHARE = {"multi_step": 0.2, "constant": 0.2, "cosine": 0.05, "ReduceLROnPlateau": 0.0}


def trainable_parameters(model: nn.Module) -> List[Tuple[str, nn.Parameter]]:
    """Names and parameters of `model` that learn."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def parameter_groups(model: nn.Module, options: TrainingOptions) -> List[Dict[str, Any]]:
    """The trainable parameters as an optimizer takes them; weight decay spares biases and norms (of one dimension)."""
    matrices = [parameter for _, parameter in trainable_parameters(model) if parameter.dim() > 1]
    vectors = [parameter for _, parameter in trainable_parameters(model) if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters.

    In one pass over weights, gradients and moments where torch has it for their device (for CPUs from 2.4 on); else in
    several, which need memory for temporary values as large as the weights.
    """
    kind = getattr(torch.optim, options.optimizer)
    groups, betas = parameter_groups(model, options), (FIRST_MOMENT_DECAY, options.adam_beta2)
    settings: Dict[str, Any] = {"lr": options.learning_rate, "betas": betas, "eps": EPSILON}
    on_gpu = all(parameter.is_cuda for _, parameter in trainable_parameters(model))
    fused = on_gpu or torch.__version__ >= "2.4"
    return kind(groups, **{"fused" if fused else "foreach": True}, **settings)


def named_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> Dict[str, Dict[str, Tensor]]:
    """The optimizer's state of each parameter under the parameter's name: the same on every engine.

    A parameter that had no gradient yet, such as those of an encoder at rest, has none.
    """
    return {name: dict(optimizer.state[p]) for name, p in trainable_parameters(model) if p in optimizer.state}


def load_named_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Dict[str, Dict[str, Tensor]]
) -> None:
    """Put back what `named_optimizer_state` returned.

    Raises:
        UserError: the state belongs to other parameters.
    """
    parameters = dict(trainable_parameters(model))
    fused = bool(optimizer.defaults.get("fused"))
    if not set(state) <= set(parameters):
        strange = sorted(set(state) - set(parameters))[0]
        raise UserError(f"the optimizer's state and the model differ in {strange!r}; resume with the run's own options")
    for name, values in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            # unless it is fused, Adam counts its steps in a tensor on the CPU
            key: value.to("cpu" if not fused else parameter.device, copy=True)
            if key == "step"
            else _laid_out_as(parameter, value)
            for key, value in values.items()
        }


def _laid_out_as(parameter: nn.Parameter, moment: Tensor) -> Tensor:
    """A copy; fused Adam goes through weights and moments as they lie in memory."""
    return torch.empty_like(parameter, requires_grad=False).copy_(moment)


@contextlib.contextmanager
def in_memory_order(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within, weights, gradients and moments have their dimensions in the order in which they lie in memory.

    PyTorch's fused Adam for CPUs copies gradients that lie otherwise (2.14 even in vain); its numbers are the same.
    """
    turned = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not parameter.is_contiguous():
                order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)
                turned.append((parameter, [order.index(dimension) for dimension in range(len(order))]))
                _permute(optimizer, parameter, order)
    try:
        yield
    finally:
        for parameter, order in turned:
            _permute(optimizer, parameter, order)


def _permute(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, order: List[int]) -> None:
    gradient, parameter.grad = parameter.grad, None
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        if value.shape == parameter.shape:
            state[name] = value.permute(order)
    parameter.data = parameter.data.permute(order)
    parameter.grad = None if gradient is None else gradient.permute(order)


class Schedule:
    """The learning rate as a function of the optimizer step.

    `multi_step`: warm-up, then 1, then 0.1 after half of the rest. `constant`: warm-up, then 1. `cosine`: warm-up, then
    half a cosine down to 0. `ReduceLROnPlateau`: halved when the loss of an epoch stops falling.

    Args:
        options: of the training.
        total_steps: optimizer steps of the whole training.
    """

    def __init__(self, options: TrainingOptions, total_steps: int) -> None:
        self.kind, self.highest, self.total_steps = options.lr_scheduler, options.learning_rate, total_steps
        warmup = options.warmup_steps
        self.warmup_steps = round(_WARMUP_SHARE[self.kind] * total_steps) if warmup is None else warmup
        # The plateau scheduler wants an optimizer to change; the engine's is not ours to touch.
        carrier = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            carrier, factor=0.5, patience=10, cooldown=10, min_lr=min(1e-6 / max(self.highest, 1e-12), 1.0)
        )

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        return self.highest * self._warmup(step) * self._factor(step)

    def end_epoch(self, loss: float) -> None:
        """Tell the schedule the mean training loss of an epoch."""
        if self.kind == "ReduceLROnPlateau":
            self.plateau.step(loss)

    def state_dict(self) -> Dict[str, Any]:
        """What a resumed run needs."""
        state = self.plateau.state_dict()
        kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {"plateau": {key: state[key] for key in kept}, "factor": self._plateau_factor()}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.plateau.load_state_dict(state["plateau"])
        self.plateau.optimizer.param_groups[0]["lr"] = state["factor"]

    def _warmup(self, step: int) -> float:
        return min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0

    def _plateau_factor(self) -> float:
        return float(self.plateau.optimizer.param_groups[0]["lr"])

    def _factor(self, step: int) -> float:
        rest = max(self.total_steps - self.warmup_steps, 1)
        progress = min(max(step - self.warmup_steps, 0) / rest, 1.0)
        if self.kind == "multi_step":
            return 1.0 if progress < 0.5 else 0.1
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return self._plateau_factor() if self.kind == "ReduceLROnPlateau" else 1.0


class WeightAverage:
    """Exponential moving average of the trainable parameters.

    The decay rises with the steps towards its final value, (1 + step) / (10 + step), so that the first weights, which
    are random, leave no trace.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.weights = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        parameters = dict(trainable_parameters(model))
        torch._foreach_lerp_(_values(self.weights), [parameters[name] for name in self.weights], 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the average; a second call undoes the first."""
        for name, parameter in trainable_parameters(model):
            held = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(held)

    def state_dict(self) -> Dict[str, Any]:
        """The average and its age."""
        return {"step": self.step, "weights": dict(self.weights)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.step = state["step"]
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)


def _values(weights: Dict[str, Tensor]) -> List[Tensor]:
    return list(weights.values())


def clip_gradients(parameters: Iterable[nn.Parameter], largest_norm: float) -> None:
    """Scale the gradients down to a norm of at most `largest_norm`; 0 leaves them."""
    if largest_norm:
        nn.utils.clip_grad_norm_(parameters, largest_norm)
