"""The simulated device: its copies of weights, buffers and optimizer state, and the loop over micro batches."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn

from ipu.simulator.batching import Batching, Results
from ipu.simulator.graph import GRADIENT, UPDATED, Graph
from ipu.simulator.half import Rounder
from ipu.simulator.options import Options
from ipu.simulator.placeholders import device_type
from ipu.simulator.program import Program, carried, check_finite
from ipu.simulator.updates import Attributes, Updater

_log = logging.getLogger("poptorch::python")
_SEED_STEP = 0x9E3779B97F4A7C15  # between the random streams of replicas
_LARGEST_SEED = 2**63 - 1


class Device:
    """Runs a graph with weights of its own.

    Args:
        graph: of the model.
        options: of the run.
        training: whether weights are updated.
        attributes: of the optimizer, in training.
        parameters: the model's parameters by name, whose groups the optimizer knows.
    """

    def __init__(
        self,
        graph: Graph,
        options: Options,
        training: bool,
        attributes: Optional[Attributes],
        parameters: Dict[str, nn.Parameter],
    ) -> None:
        self.graph, self.options, self.training = graph, options, training
        self.weights_are_there = False
        popart = options._Popart.options
        given = options.random_seed if options.exists("random_seed") else torch.Generator().seed()
        self.seed = int(given) % _LARGEST_SEED
        _log.debug("Setting random seed to %d", self.seed)
        self.exceptions = bool(popart.get("enableFloatingPointChecks"))
        self.rounder = Rounder(bool(popart.get("enableStochasticRounding")), self.exceptions, self.seed)
        half_partials = popart.get("partialsTypeMatMuls") == "half"
        self.program = Program(graph, self.rounder.differentiable, half_partials, self.exceptions)
        self._values: Dict[int, Tensor] = {}
        self._own_buffers: List[Dict[int, Tensor]] = []
        self._random: List[Tensor] = []
        self._seed_replicas()
        self._half_buffers = [
            graph.buffers[name]
            for name in graph.written_buffers
            if graph.values[graph.buffers[name]].dtype == torch.half
        ]
        self.updater: Optional[Updater] = None
        self._learning: Dict[str, int] = {}
        self._half_weights: Set[str] = set()
        self._observed: Dict[str, Results] = {}
        self._seen_gradients: Dict[int, Tensor] = {}
        if training:
            assert attributes is not None
            self._make_updater(attributes, parameters)

    # ----------------------------------------------------------------------------------------------- weights and states

    def put(self, tensors: Dict[str, Tensor]) -> None:
        """Upload weights and buffers by name; those that the graph does not read are left out."""
        read = {value for node in self.graph.nodes for value in node.inputs} | set(self.graph.lasting())
        learning = set(self._learning.values())
        for name, value in (*self.graph.weights.items(), *self.graph.buffers.items()):
            if name not in tensors or value not in read:
                continue
            uploaded = carried(tensors[name].to(device_type(tensors[name].dtype))).clone()
            self._values[value] = uploaded.requires_grad_(value in learning)
            for buffers in self._own_buffers:
                if value in buffers:
                    buffers[value] = uploaded.clone()
        self.weights_are_there = True

    def weights_and_buffers(self) -> Dict[str, Tensor]:
        """What the device has of them, by name; of replicas with buffers of their own the first one's."""
        values = {**self._values, **(self._own_buffers[0] if self._own_buffers else {})}
        names = {**self.graph.weights, **self.graph.buffers}
        return {name: values[value].detach() for name, value in names.items() if value in values}

    def set_attributes(self, attributes: Optional[Attributes]) -> None:
        """Upload the values of the optimizer."""
        if self.updater is not None and attributes is not None:
            self.updater.set_attributes(attributes)

    def optimizer_state(self) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
        """The optimizer's tensors and its variable values, by PopART's names."""
        assert self.updater is not None
        return self.updater.state(), self.updater.parameters()

    def load_optimizer_state(self, state: Dict[str, Tensor], parameters: Dict[str, Tensor]) -> None:
        """Put back what `optimizer_state` gave; what is missing stays as it is."""
        assert self.updater is not None
        self.updater.load_state(state)
        self.updater.load_parameters(parameters)

    def random_state(self) -> List[int]:
        """The seed, then the generators' states."""
        _log.debug("Reading random seed")
        _log.debug("Reading RNG state")
        states = [*self._random, self.rounder.state()]
        return [self.seed, *(number for state in states for number in state.tolist())]

    def set_random_state(self, state: Sequence[int]) -> None:
        """Put back what `random_state` gave; of a list of another length only the seed is taken."""
        self.seed = int(state[0]) % _LARGEST_SEED
        _log.debug("Setting random seed to %d", self.seed)
        _log.debug("Setting RNG state")
        lengths = [len(tensor) for tensor in (*self._random, self.rounder.state())]
        if len(state) != 1 + sum(lengths):
            self._seed_replicas()
            return
        parts = torch.tensor(list(state[1:]), dtype=torch.uint8).split(lengths)
        self._random = [part.clone() for part in parts[:-1]]
        self.rounder.set_state(parts[-1].clone())

    # ---------------------------------------------------------------------------------------------------------- running

    def run(self, tensors: List[Tensor], batching: Batching, results: Dict[int, Results]) -> Dict[str, Tensor]:
        """Run a batch; collects the outputs and returns the anchored tensors by name.

        Raises:
            Error: a value overflowed, where the options make that an error.
        """
        anchored = {name: Results(self._batching_of(name, batching)) for name in self.graph.anchored}
        self._observed = {name: Results(self._batching_of(name, batching)) for name in self.graph.observed}
        wanted = [(value, results[i]) for i, value in enumerate(self.graph.outputs) if value is not None]
        wanted += [(self.graph.anchored[name], found) for name, found in anchored.items()]
        before = torch.get_rng_state()
        try:
            torch.set_rng_state(self._random[0])
            inputs = [self._received(tensor, position) for position, tensor in enumerate(tensors)]
            self._random[0] = torch.get_rng_state()
            for iteration in range(batching.device_iterations):
                for replica in range(batching.replicas):
                    self._run_replica(inputs, batching, wanted, iteration, replica)
                if self.updater is not None:
                    with torch.no_grad():
                        self.updater.apply({name: self._values[value] for name, value in self._learning.items()})
                    for replica in range(batching.replicas):
                        self._observe(UPDATED, self._values, iteration, batching.gradient_accumulation - 1, replica)
        finally:
            torch.set_rng_state(before)
            if self.updater is not None:
                self.updater.discard()
        self._write_inputs_back(tensors, inputs)
        observed = {name: self.graph.weights[weight] for name, (_, weight) in self.graph.observed.items()}
        values = {**self.graph.anchored, **observed}
        return {
            name: found.value(self.graph.values[values[name]].dtype)
            for name, found in (*anchored.items(), *self._observed.items())
        }

    def _run_replica(
        self,
        inputs: List[Tensor],
        batching: Batching,
        results: Sequence[Tuple[int, Results]],
        iteration: int,
        replica: int,
    ) -> None:
        torch.set_rng_state(self._random[replica])
        if self.updater is not None:
            self.updater.begin_replica()
        values = {**self._values, **self._buffers_of(replica, batching.replicas)}
        for step in range(batching.gradient_accumulation):
            for value, tensor in zip(self.graph.inputs, inputs):
                values[value] = batching.micro_batch(tensor, iteration, step, replica)
            held = self._micro_batch(values)
            self._observe(GRADIENT, self._seen_gradients, iteration, step, replica)
            for value in self._half_buffers:
                values[value].copy_(self.rounder(values[value]))
            for value, found in results:
                found.add(held[value].detach(), iteration, step, replica)
        if self.updater is not None:
            self.updater.end_replica()
        self._random[replica] = torch.get_rng_state()

    def _micro_batch(self, values: Dict[int, Tensor]) -> List[Any]:
        if self.updater is None or self.graph.loss is None:
            with torch.no_grad():
                return self.program.run(values)
        held = self.program.run(values)
        gradients = self._gradients(held[self.graph.loss], values)
        if self._observed:
            self._seen_gradients = {self._learning[name]: tensor.clone() for name, tensor in gradients.items()}
        self.updater.accumulate(gradients)
        return held

    def _observe(self, kind: str, tensors: Dict[int, Tensor], iteration: int, step: int, replica: int) -> None:
        """Take what the options ask for beside the outputs; a weight that nothing reaches has a gradient of 0."""
        for name, found in self._observed.items():
            observed, weight = self.graph.observed[name]
            if observed == kind:
                value = self.graph.weights[weight]
                tensor = tensors.get(value)
                kept = torch.zeros_like(self._values[value]) if tensor is None else tensor
                found.add(kept.detach(), iteration, step, replica)

    def _gradients(self, loss: Tensor, values: Dict[int, Tensor]) -> Dict[str, Tensor]:
        assert self.updater is not None
        if not loss.requires_grad:  # it depends on no weight that learns
            return {}
        weights = [values[value] for value in self._learning.values()]
        found = torch.autograd.grad(loss, weights, torch.full_like(loss, self.updater.seed), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(self._learning, found) if gradient is not None}
        for name in self._half_weights.intersection(gradients):
            gradients[name] = self.rounder(gradients[name])
        if self.exceptions:
            for name, gradient in gradients.items():
                check_finite(gradient, f"the gradient of {name}")
        return gradients

    def _received(self, tensor: Tensor, position: int) -> Tensor:
        """An input as the device has it: what forward writes to must not be the caller's own yet."""
        received = tensor.detach().to(device_type(tensor.dtype))
        if received.dtype == torch.int64:
            received = received.to(torch.int32).long()
        received = carried(received)
        if self.options._Popart.options.get("syntheticDataMode", 0) and received.is_floating_point():
            received = torch.randn_like(received)
        return received.clone() if position in self.graph.written_inputs else received

    def _batching_of(self, anchor: str, batching: Batching) -> Batching:
        """Which micro batches' values of an anchored tensor come back: as of the outputs, or as it says."""
        _, like_outputs, mode, period = self.options.anchored_tensors[anchor]
        return batching if like_outputs else dataclasses.replace(batching, mode=mode, period=period)

    def _buffers_of(self, replica: int, replicas: int) -> Dict[int, Tensor]:
        """Buffers that forward changes are a replica's own, where they are not broadcast."""
        if replicas == 1 or not self.graph.written_buffers:
            return {}
        if not self._own_buffers:
            changed = [self.graph.buffers[name] for name in self.graph.written_buffers]
            self._own_buffers = [{value: self._values[value].clone() for value in changed} for _ in range(replicas)]
        return self._own_buffers[replica]

    def _write_inputs_back(self, tensors: List[Tensor], inputs: List[Tensor]) -> None:
        with torch.no_grad():
            for position in self.graph.written_inputs:
                tensors[position].copy_(inputs[position])

    def _make_updater(self, attributes: Attributes, parameters: Dict[str, nn.Parameter]) -> None:
        seen: Dict[int, str] = {}
        for name in self.graph.used_weights():
            if parameters[name].requires_grad:
                seen.setdefault(self.graph.weights[name], name)  # tied weights are one
        self._learning = {name: value for value, name in seen.items()}
        self._half_weights = {n for n, value in self._learning.items() if self.graph.values[value].dtype == torch.half}
        training = self.options.Training
        self.updater = Updater(
            attributes,
            {name: parameters[name] for name in self._learning},
            {name: self.graph.values[value].dtype for name, value in self._learning.items()},
            self.options.Training.gradient_accumulation,
            self.options.replication_factor,
            training.accumulation_and_replication_reduction_type,
            training.meanAccumulationAndReplicationReductionStrategy,
            self.rounder,
            automatic_loss_scaling(self.options),
        )

    def _seed_replicas(self) -> None:
        self._random = [
            torch.Generator().manual_seed((self.seed + replica * _SEED_STEP) % _LARGEST_SEED).get_state()
            for replica in range(self.options.replication_factor)
        ]


def automatic_loss_scaling(options: Options) -> bool:
    """Whether the options ask for it."""
    return bool(options._Popart.options.get("automaticLossScalingSettings.enabled"))
