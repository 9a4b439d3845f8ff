"""The optimizer on the device: from the gradients of micro batches to new weights, and the states that last.

An update collects the gradients of G micro batches on each of R replicas. On a replica they meet in an accumulator of
the type that the optimizer asks for (with one micro batch there is none, and the gradient goes on in its own type),
then the replicas are added up, and every weight follows its rule (`update_rules.py`). What is half is a float32 tensor
on the half grid. Names of states and scalars are PopART's.
"""

from __future__ import annotations

import logging
import math
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ipu.simulator.enums import MeanReductionStrategy, ReductionType
from ipu.simulator.half import LARGEST, Rounding
from ipu.simulator.optimizer_attributes import Attributes, Kind, Settings, read_attributes
from ipu.simulator.poptorch_core import Error
from ipu.simulator.update_rules import GRADIENT_DIVISOR, STEP, Rule, State, device_scalars, make_rule

__all__ = ["Attributes", "Updater", "read_attributes"]

LOSS_SCALING, LOSS_SCALE_FACTOR = "lossScaling_FLOAT", "lossScaleUpdateFactor"

_LARGE_GRADIENT = 0.125 * LARGEST
_LARGE_SHARE = 1e-7  # of all gradients, at most, may be large before the loss scale is lowered
_LARGEST_LOSS_SCALE = 2.0**15  # that the device finds by itself: one step further a half could not hold it

_log = logging.getLogger("poptorch::python")


class Updater:
    """Updates weights as the device does.

    Per update and replica: `begin_replica`, `accumulate` for each micro batch, `end_replica`; then `apply`.

    Args:
        attributes: of the optimizer.
        names: the weights that learn. Those in no group of the optimizer follow its defaults.
        dtypes: their declared types; the tensors themselves are float32 always.
        gradient_accumulation: micro batches per update and replica.
        replication_factor: replicas.
        reduction: whether gradients are added up or averaged, over micro batches and replicas alike.
        strategy: whether an average over micro batches is kept as one, or divided at the end.
        round_half: brings float32 values to the half grid.
        automatic_loss_scaling: whether the loss scale follows the gradients.

    Raises:
        Error: a value of the optimizer that its update does not admit.
    """

    def __init__(
        self,
        attributes: Attributes,
        names: Dict[str, nn.Parameter],
        dtypes: Dict[str, torch.dtype],
        gradient_accumulation: int,
        replication_factor: int,
        reduction: ReductionType,
        strategy: MeanReductionStrategy,
        round_half: Rounding,
        automatic_loss_scaling: bool = False,
    ) -> None:
        attributes.check_values()
        self.attributes, self.automatic_loss_scaling = attributes, automatic_loss_scaling
        self._parameters, self._dtypes, self._round_half = dict(names), dtypes, round_half
        self._shapes = {name: parameter.shape for name, parameter in names.items()}
        self._micro_batches = gradient_accumulation
        mean = reduction == ReductionType.Mean
        self._keeps_mean = mean and strategy == MeanReductionStrategy.Running
        in_sum = replication_factor * (1 if self._keeps_mean else gradient_accumulation)
        self._divisor = float(in_sum if mean else 1)
        self._groups = self._find_groups()
        self._half_sums = [self._sums_in_half(name) for name in names]
        self._rules: Dict[str, Rule] = {name: self._make_rule(name) for name in names}
        self._state: Dict[str, State] = {name: self._initial_state(name) for name in names}
        self._scalars: Dict[str, Dict[str, float]] = {}
        self._loss_scaling = 1.0
        self._upload_scalars()
        self._factor = 1.0  # of the loss scaling, found by the device
        self._large = self._watched = 0
        self._count = 0
        self._accumulated: Optional[List[Tensor]] = None
        self._total: Optional[List[Tensor]] = None

    # ----------------------------------------------------------------------------------------------------- one update

    @property
    def seed(self) -> float:
        """The gradient of the loss: the loss scaling, with the factor that the device has found."""
        return self._loss_scaling * self._factor

    def begin_replica(self) -> None:
        """Before the micro batches of a replica."""
        self._accumulated, self._count = None, 0

    @torch.no_grad()
    def accumulate(self, gradients: Dict[str, Tensor]) -> None:
        """Take in the gradients of a micro batch.

        Args:
            gradients: by weight, float32, times the loss scale; a weight without one has a gradient of zeros. The
                tensors are kept and changed.
        """
        found = [gradients.get(name) for name in self._parameters]
        if self.automatic_loss_scaling:
            self._watch(found)
        if self._accumulated is None:
            self._accumulated = self._take(found)
        elif self._keeps_mean:
            self._add(self._accumulated, self._filled(found), 1 / (self._count + 1))
        else:
            self._add(self._accumulated, self._filled(found))
        self._count += 1

    @torch.no_grad()
    def end_replica(self) -> None:
        """After the micro batches of a replica: add its gradients to those of the others."""
        assert self._accumulated is not None and self._count == self._micro_batches, (
            f"a replica ended after {self._count} of {self._micro_batches} micro batches"
        )
        if self._total is None:
            self._total = self._accumulated
        else:
            self._add(self._total, self._accumulated)
        self._accumulated = None

    def discard(self) -> None:
        """Forget the gradients of an update that was not finished."""
        self._accumulated = self._total = None

    @torch.no_grad()
    def apply(self, weights: Dict[str, Tensor]) -> None:
        """Update the weights in place.

        Args:
            weights: by name, float32.

        Raises:
            Error: the loss scaling is to be found automatically, and there is no half gradient to find it by.
        """
        assert self._total is not None, "an update without the gradients of a replica"
        gradients, self._total = self._total, None
        factor = self._clipping(gradients) / self._factor
        for name, gradient in zip(self._parameters, gradients):
            weight = weights[name]
            self._rules[name].update(weight, gradient, self._state[name], self._scalars[name], factor)
            if self._dtypes[name] == torch.float16:
                weight.copy_(self._round_half(weight))
        if self.automatic_loss_scaling:
            self._rescale_loss()

    def watch(self, gradient: Tensor) -> None:
        """Count a half gradient, of a weight or any other tensor, for automatic loss scaling."""
        self._watched += gradient.numel()
        if not gradient.numel():
            return
        lowest, highest = torch.aminmax(gradient)
        if not max(-lowest.item(), highest.item()) <= _LARGE_GRADIENT:  # counting takes ten times as long
            self._large += int(gradient.abs().gt(_LARGE_GRADIENT).sum())

    # ------------------------------------------------------------------------------------------------ values and states

    def set_attributes(self, new: Attributes) -> None:
        """Upload the values of the optimizer.

        Raises:
            Error: a value that was compiled in has changed, or one that its update does not admit.
        """
        self.attributes.check_update(new)
        self.attributes = new
        self._groups = self._find_groups()
        self._upload_scalars()

    def state(self) -> Dict[str, Tensor]:
        """Copies of the states by name, in their declared types."""
        state = {
            f"{prefix}___{name}": tensor.to(self._state_dtype(name, prefix), copy=True)
            for name, states in self._state.items()
            for prefix, tensor in states.items()
        }
        if self.automatic_loss_scaling:
            state[LOSS_SCALE_FACTOR] = torch.tensor(self._factor)
        return state

    @torch.no_grad()
    def load_state(self, state: Dict[str, Tensor]) -> None:
        """Put back what `state` returned; a state that is missing stays as it is.

        Raises:
            Error: a tensor of another shape.
        """
        missing = []
        for name, states in self._state.items():
            for prefix, tensor in states.items():
                key = f"{prefix}___{name}"
                if key not in state:
                    missing.append(key)
                    continue
                _check_shape(key, state[key], tensor)
                tensor.copy_(state[key])
        if missing:
            _log.warning("the loaded optimizer state has no %s; %d states stay as they are", missing[0], len(missing))
        if self.automatic_loss_scaling and LOSS_SCALE_FACTOR in state:
            self._factor = float(state[LOSS_SCALE_FACTOR])

    def parameters(self) -> Dict[str, Tensor]:
        """The variable values by name, each a float32 scalar."""
        values = {key: torch.tensor(self._scalars[name][scalar]) for key, name, scalar in self._variable_scalars()}
        if not self.attributes.loss_scaling.constant:
            values[LOSS_SCALING] = torch.tensor(self._loss_scaling)
        return values

    def load_parameters(self, parameters: Dict[str, Tensor]) -> None:
        """Put back what `parameters` returned, until the next upload; a value that is missing stays as it is."""
        for key, name, scalar in self._variable_scalars():
            if key in parameters:
                self._scalars[name][scalar] = float(parameters[key])
        if not self.attributes.loss_scaling.constant and LOSS_SCALING in parameters:
            self._loss_scaling = float(parameters[LOSS_SCALING])

    # -------------------------------------------------------------------------------------------------------- gradients

    def _take(self, gradients: Sequence[Optional[Tensor]]) -> List[Tensor]:
        """Gradients that may be changed in place: autograd hands out the same memory twice, or expands a number."""
        taken: List[Tensor] = []
        seen = set()
        for index, gradient in enumerate(self._filled(gradients)):
            if not gradient.is_contiguous() or gradient.data_ptr() in seen:
                gradient = gradient.clone(memory_format=torch.contiguous_format)
            seen.add(gradient.data_ptr())
            if self._half_sums[index] and self._micro_batches > 1:
                gradient.copy_(self._round_half(gradient))
            taken.append(gradient)
        return taken

    def _filled(self, gradients: Sequence[Optional[Tensor]]) -> List[Tensor]:
        shapes = self._shapes.values()
        return [torch.zeros(shape) if found is None else found for found, shape in zip(gradients, shapes)]

    def _add(self, sums: List[Tensor], gradients: List[Tensor], share: Optional[float] = None) -> None:
        """Add gradients to sums in place; with a share move the sums, means then, by that much towards them."""
        if not any(self._half_sums):
            if share is None:
                torch._foreach_add_(sums, gradients)
            else:
                torch._foreach_lerp_(sums, gradients, share)
            return
        for half, total, gradient in zip(self._half_sums, sums, gradients):
            if share is None:
                total.add_(gradient)
            else:
                total.lerp_(gradient, share)
            if half:
                total.copy_(self._round_half(total))

    def _clipping(self, gradients: List[Tensor]) -> float:
        """The factor that brings the norm of all unscaled gradients down to the largest allowed."""
        largest = self.attributes.fixed["max_grad_norm"]
        if math.isinf(largest) or not gradients:
            return 1.0
        norms = torch.stack(torch._foreach_norm(gradients))
        norm = norms.norm().item() / abs(self.seed * self._divisor)
        return largest / max(largest, norm)

    def _watch(self, gradients: Sequence[Optional[Tensor]]) -> None:
        for name, gradient in zip(self._parameters, gradients):
            if gradient is not None and self._dtypes[name] == torch.float16:
                self.watch(gradient)

    def _rescale_loss(self) -> None:
        if not self._watched:
            raise Error(
                "popart_exception",
                "automatic loss scaling needs half gradients to watch, and the model has none; make weights half "
                "(model.half()), or call Training.setAutomaticLossScaling(False)",
            )
        small = self._watched - self._large
        if self._large > _LARGE_SHARE / (1 - _LARGE_SHARE) * small:
            self._factor *= 0.5
        elif 2 * abs(self.seed) <= _LARGEST_LOSS_SCALE:
            self._factor *= 2
        self._large = self._watched = 0

    # ----------------------------------------------------------------------------------------------- rules and scalars

    def _find_groups(self) -> Dict[str, Optional[int]]:
        return {name: self.attributes.group_of(parameter) for name, parameter in self._parameters.items()}

    def _settings(self, name: str) -> Settings:
        return self.attributes.settings(self._groups[name])

    def _make_rule(self, name: str) -> Rule:
        accumulates = self._micro_batches > 1
        settings, dtype = self._settings(name), self._dtypes[name]
        return make_rule(self.attributes, settings, dtype, accumulates, self._divisor, self._round_half)

    def _sums_in_half(self, name: str) -> bool:
        """Whether gradients of a weight are added up in half: in the accumulator's type, or their own without one."""
        own = self._micro_batches == 1 or self.attributes.kind is Kind.SGD_COMBINED
        dtype = self._dtypes[name] if own else self.attributes.fixed["accum_type"]
        return bool(dtype == torch.float16)

    def _initial_state(self, name: str) -> State:
        rule, shape = self._rules[name], self._shapes[name]
        state = {prefix: torch.full(shape, spec.initial) for prefix, spec in rule.states.items()}
        if rule.counts_steps:
            state[STEP] = torch.zeros(())
        return state

    def _state_dtype(self, name: str, prefix: str) -> torch.dtype:
        return torch.float32 if prefix == STEP else self._rules[name].states[prefix].dtype

    def _upload_scalars(self) -> None:
        self._loss_scaling = self.attributes.loss_scaling.value
        common = {"loss_scaling": self._loss_scaling, GRADIENT_DIVISOR: self._divisor}
        for name, rule in self._rules.items():
            values = {key: setting.value for key, setting in self._settings(name).items()}
            self._scalars[name] = device_scalars(rule, {**values, **common})

    def _variable_scalars(self) -> Iterator[Tuple[str, str, str]]:
        """The key, the weight and the name of each scalar that is not compiled in."""
        for name, rule in self._rules.items():
            settings = {**self._settings(name), "loss_scaling": self.attributes.loss_scaling}
            place = "default___FLOAT" if self._groups[name] is None else f"specific___{name}"
            for scalar in rule.scalars:
                if not all(settings[part].constant for part in scalar.made_of):
                    yield f"{scalar.name}___{place}", name, scalar.name


def _check_shape(key: str, loaded: Tensor, held: Tensor) -> None:
    if loaded.shape != held.shape:
        raise Error(
            "popart_exception",
            f"{key} has the shape {tuple(loaded.shape)} in the loaded optimizer state, on the device "
            f"{tuple(held.shape)}; load the state of the same model",
        )
