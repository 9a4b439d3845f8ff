"""Models on a simulated device: compile, run, and the way of weights to and fro."""

from __future__ import annotations

import copy
import datetime
import itertools
import logging
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ipu.simulator import hooks
from ipu.simulator.arguments import Arguments, ArgumentsParser, check_same, flatten_output, rebuild_output
from ipu.simulator.batching import Batching, Results
from ipu.simulator.blocks import module_repr
from ipu.simulator.counters import Counters
from ipu.simulator.device import Device, automatic_loss_scaling
from ipu.simulator.enums import ConnectionType, MeanReductionStrategy, OutputMode
from ipu.simulator.executables import note_in_cache, read_executable, set_modes, warn_without_cache, write_executable
from ipu.simulator.graph import Graph
from ipu.simulator.optim import SGD
from ipu.simulator.optimizer_attributes import Settings
from ipu.simulator.options import Options
from ipu.simulator.options_checks import check_backend, check_ipu_count
from ipu.simulator.poptorch_core import python_error
from ipu.simulator.stages import Stages
from ipu.simulator.strategies import PipelinedExecution, ShardedExecution
from ipu.simulator.tracing import trace
from ipu.simulator.updates import Attributes, read_attributes
from ipu.simulator.wrapping import executor_of, named_slots, unwrap, wrap

_log = logging.getLogger("poptorch::python")
_versions = itertools.count(1)  # of weights, in the order in which they moved
_NOT_COMPILED = "Model has not been compiled or has been destroyed. Call it, or compile(...), first."


class PoplarExecutor:
    """A model compiled for IPUs, called like the model; made by `trainingModel`, `inferenceModel` and `load`.

    Args:
        model: of the user.
        options: of the run; None: the defaults.
        training: whether each call updates the weights.
        optimizer: for training; None: SGD with a learning rate of 0.01.
    """

    def __init__(
        self,
        model: Any,
        options: Optional[Options],
        training: bool,
        optimizer: Optional[torch.optim.Optimizer] = None,
    ) -> None:
        self._training = training
        self._user_model: nn.Module = model._user_model if isinstance(model, PoplarExecutor) else model
        self._options = _own_options(options, training)
        if training and executor_of(self._user_model) is not None:
            raise RuntimeError("the model has already been wrapped by trainingModel; destroy that wrapper first")
        self._arguments_parser = ArgumentsParser(self._user_model.forward)
        self._model = copy.copy(self._user_model)  # attributes set on the original later are not seen
        self._attributes: Optional[Attributes] = None
        self._optimizer: Optional[torch.optim.Optimizer] = None
        self._graph: Optional[Graph] = None
        self._device: Optional[Device] = None
        self._attached, self._dirty, self._warned_of_gradients = False, False, False
        self._host_version = self._pushed_version = 0
        self._optimizer_state: Optional[Dict[str, Any]] = None
        self._rng_state: Optional[List[int]] = None
        self._compiled_with: Optional[Arguments] = None
        self._output: Any = None
        self._compile_seconds = 0.0
        self._modes: Dict[str, bool] = {}
        self._anchored: Dict[str, Tensor] = {}
        self._counters = Counters()
        if training:
            if optimizer is None:
                optimizer = SGD(self._user_model.parameters(), lr=0.01)
            self._take_optimizer(optimizer)
            wrap(self._user_model, self)

    # ------------------------------------------------------------------------------------------------- compile and run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a batch: compile and attach if need be, check the arguments, compute.

        Raises:
            Error, AssertionError: arguments unlike those it was compiled with, or something the device cannot do.
        """
        given = self._arguments_parser.bind(args, kwargs)
        if not self.isCompiled():
            self._compile(given)
        if not self._attached:
            assert self._options.connection_type != ConnectionType.Never, (
                "Trying to run a model on an offline device (ConnectionType.Never)"
            )
            self.attachToDevice()
        assert self._compiled_with is not None and self._device is not None
        check_same(self._compiled_with, given)
        self._refresh_from_trainer()
        self._load_optimizer_state()
        tensors = given.tensors()
        if not self._warned_of_gradients and any(tensor.requires_grad for tensor in tensors):
            _log.warning("an input requires a gradient, which the device does not return; it is detached")
            self._warned_of_gradients = True
        return self._run(tensors)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Trace the model with these arguments and upload its weights; nothing is updated."""
        if self.isCompiled():
            _log.warning("the model is compiled already; this call of compile is ignored")
            return
        self._compile(self._arguments_parser.bind(args, kwargs))

    def isCompiled(self) -> bool:
        """Whether there is an executable."""
        return self._graph is not None

    def isAttachedToDevice(self) -> bool:
        """Whether it lies on a device."""
        return self._attached

    def attachToDevice(self) -> None:
        """Take the device and upload the weights.

        Raises:
            Error: not compiled, or attached already.
            AssertionError: the options say that there is no device.
        """
        self._check_compiled()
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to run a model on an offline device (ConnectionType.Never)"
        )
        if self._attached:
            raise python_error("Device is already attached; detachFromDevice() comes before attaching anew")
        self._attached = True
        self._upload()

    def detachFromDevice(self) -> None:
        """Read weights, optimizer state and random state back, and let go of the device.

        Raises:
            Error: not compiled, or not attached.
        """
        self._check_compiled()
        if not self._attached:
            raise python_error("Device is not attached; attachToDevice() or a call attaches it")
        self._read_back()
        self._attached = False

    def destroy(self) -> None:
        """Read everything back, drop the executable and give the user's model its own class again."""
        if not self.isCompiled():
            return
        if self._attached:
            self._read_back()
        self._graph, self._device, self._attached, self._dirty, self._rng_state = None, None, False, False, None
        if self._training and executor_of(self._user_model) is self:
            unwrap(self._user_model)

    def _compile(self, given: Arguments) -> None:
        started = time.perf_counter()
        check_backend(self._options)
        self._modes = {name: module.training for name, module in self._model.named_modules()}
        tensors = given.tensors()
        batching = self._batching()
        batching.check(tensors)
        warn_without_cache(self._options)
        hooks.run(hooks.before_compile)
        try:
            graph, output = self._trace(given, [batching.first(tensor) for tensor in tensors])
        finally:
            hooks.run(hooks.after_compile)
        self._device = Device(graph, self._options, self._training, self._attributes, self._named_parameters())
        self._log_attributes()
        self._graph, self._output, self._compiled_with = graph, output, given
        note_in_cache(self._options, graph)
        self._compile_seconds = time.perf_counter() - started
        if self._optimizer_state is not None:  # of before destroy()
            self._device.load_optimizer_state(**self._optimizer_state)
        self._optimizer_state = None
        if self._options.connection_type != ConnectionType.Never:
            self.attachToDevice()

    def _trace(self, given: Arguments, micro_batch: Sequence[Tensor]) -> Tuple[Graph, Any]:
        strategy = self._options._execution_strategy
        pipelined = isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)
        stages = Stages(strategy._placer(), pipelined, phased=not isinstance(strategy, PipelinedExecution))
        graph, output, computed = trace(self._model, given, micro_batch, stages, self._training)
        options = self._options
        stages.check_depth(options.Training.gradient_accumulation, options.device_iterations, self._training)
        check_ipu_count(options, stages.ipus)
        self._check_graph(graph)
        graph.keep(self._options.anchored_tensors)
        graph.prune()
        graph.fold_constants(computed)
        return graph, output

    def _check_graph(self, graph: Graph) -> None:
        options = self._options
        if self._training and graph.loss is None:
            raise python_error(
                "Couldn't find a loss in graph; end the model with a loss function of PyTorch, or wrap what is to be "
                "minimised in poptorch.identity_loss"
            )
        if self._training and graph.inference_only:
            name = min(graph.inference_only)
            raise python_error(f"{name} is for inference only; leave it out of a model that is trained")
        if options.broadcast_buffers and options.replication_factor > 1 and graph.written_buffers:
            raise python_error(
                f"forward changes the buffer {sorted(graph.written_buffers)[0]}, and PopTorch does not support "
                "broadcasting buffers that change; call broadcastBuffers(False) on the options"
            )
        check_overlap(options, graph)
        unknown = sorted(set(options.updatable_named_buffers) - set(graph.buffers))
        if unknown:
            raise python_error(
                f"updatableNamedBuffers names {unknown[0]}, and the model's buffers are "
                f"{', '.join(graph.buffers) or 'none'}"
            )

    def _run(self, tensors: List[Tensor]) -> Any:
        assert self._graph is not None and self._device is not None
        graph, batching = self._graph, self._batching()
        results = {i: Results(batching) for i, value in enumerate(graph.outputs) if value is not None}
        started = time.perf_counter()
        anchored = self._device.run(tensors, batching, results)
        self._counters.note(
            batching, len(tensors), len(results), time.perf_counter() - started, bool(self._synthetic())
        )
        self._anchored = anchored
        if self._training:
            self._dirty, self._optimizer_state = True, None
        leaves = flatten_output(self._output)
        found = [
            results[i].value(graph.values[value].dtype) if value is not None else leaves[i].detach()
            for i, value in enumerate(graph.outputs)
        ]
        return rebuild_output(self._output, [_result(leaf) for leaf in found])

    # ---------------------------------------------------------------------------------------------- weights and states

    def copyWeightsToHost(self) -> None:
        """Bring weights and buffers back to the user's model."""
        self._check_compiled()
        self._dirty = False
        assert self._device is not None
        _log.debug("Writing weights from IPU to host")
        slots = named_slots(self._user_model)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for name, value in self._device.weights_and_buffers().items():
                target = slots[name]
                Tensor.copy_(Tensor.detach(target), value.to(target.dtype))
        self._host_version = next(_versions)

    def copyWeightsToDevice(self) -> None:
        """Push weights and buffers of the user's model; what the device had is lost unless it was read before."""
        self._check_compiled()
        if self._optimizer is not None and _is_poptorch(self._optimizer):
            self._device_state()
        self._dirty = False
        if self._attached:
            self._push_weights()

    def copyNamedBuffersToDevice(self) -> None:
        """Push the buffers that the option `updatableNamedBuffers` names.

        Raises:
            Error: it names none, or the model is not compiled.
        """
        self._check_compiled()
        names = self._options.updatable_named_buffers
        if not names:
            raise python_error("copyNamedBuffersToDevice needs the option updatableNamedBuffers")
        assert self._device is not None
        slots = named_slots(self._user_model)
        with torch._C.DisableTorchFunction():
            self._device.put({name: Tensor.detach(slots[name]) for name in names})

    def load_state_dict(self, state_dict: Dict[str, Tensor], strict: bool = True) -> Any:
        """Load weights into the user's model, and onto the device if one is attached."""
        self._dirty = False
        found = self._user_model.load_state_dict(state_dict, strict)
        if self._attached:
            _log.debug("Implicit copyWeightsToDevice()")
            self.copyWeightsToDevice()
        return found

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use the values that an optimizer has now; without this call a change of them has no effect.

        Raises:
            Error: a value that was compiled in has changed.
        """
        if not self._training:
            raise python_error("setOptimizer is for training; this is an inference model")
        if optimizer is not self._optimizer and self._optimizer is not None:
            self._release_optimizer()
        new = self._read_attributes(optimizer)
        if self.isCompiled() and self._attributes is not None:
            if new.needs_running_mean and self._strategy() != MeanReductionStrategy.Running:
                raise ValueError(
                    "the model is already compiled, and accum_type=torch.float16 needs another mean over micro batches"
                    "; destroy() the executor before, or keep torch.float32"
                )
            self._attributes.check_update(new)
        if optimizer is not self._optimizer:
            self._take_optimizer(optimizer)
        elif new != self._attributes:
            self._attributes = new
        if self._device is not None and self._attached:
            self._device.set_attributes(self._attributes)
            self._log_attributes()
            self._optimizer_state = None
            self._load_optimizer_state()

    @property
    def rng_state(self) -> List[int]:
        """The seed and the state of the random number generators."""
        self._check_compiled()
        assert self._device is not None
        return self._device.random_state()

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._check_compiled()
        assert self._device is not None
        self._device.set_random_state(state)
        self._rng_state = None

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._user_model

    @property
    def options(self) -> Options:
        """A copy of the options, frozen."""
        return self._options

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._user_model, name)

    def __repr__(self) -> str:
        return module_repr(self._user_model)

    def __del__(self) -> None:
        if self.__dict__.get("_dirty") and self.__dict__.get("_device") is not None and not sys.is_finalizing():
            with _disable_current_modes():  # the garbage collector comes when it likes: perhaps while a model is traced
                self.copyWeightsToHost()

    def _upload(self) -> None:
        _log.debug("Implicit copyWeightsToDevice()")
        self._push_weights()
        assert self._device is not None
        if self._training:
            self._device.set_attributes(self._attributes)
            self._load_optimizer_state()
        if self._rng_state is not None:
            self._device.set_random_state(self._rng_state)

    def _push_weights(self) -> None:
        assert self._device is not None
        trainer = executor_of(self._user_model)
        if trainer is not None and trainer is not self:
            trainer._copy_weights_if_newer()
        self._pushed_version = next(_versions)
        _log.debug("Writing weights from host to IPU memory")
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self._device.put({name: Tensor.detach(tensor) for name, tensor in named_slots(self._user_model).items()})

    def _copy_weights_if_newer(self) -> bool:
        if not self._dirty or not self._attached:
            return False
        _log.debug("Implicit copyWeightsToHost()")
        self.copyWeightsToHost()
        return True

    def _refresh_from_trainer(self) -> None:
        """Before inference: take the weights that another executor has trained since."""
        trainer = executor_of(self._user_model)
        if self._training or trainer is None:
            return
        trainer._copy_weights_if_newer()
        if trainer._host_version > self._pushed_version:
            _log.debug("Implicit copyWeightsToDevice()")
            self._push_weights()

    def _read_back(self) -> None:
        assert self._device is not None
        self._rng_state = self._device.random_state()
        if self._training:
            self._copy_weights_if_newer()
            if self._optimizer is not None and _is_poptorch(self._optimizer):
                self._device_state()

    # -------------------------------------------------------------------------------------------------- the optimizer

    def _take_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._attributes = self._read_attributes(optimizer)
        if self._attributes.needs_running_mean:
            self._options._unfreeze()
            strategy = MeanReductionStrategy.Running
            self._options.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
            self._options._freeze()
        self._optimizer = optimizer
        if _is_poptorch(optimizer):
            optimizer._bind(self)  # type: ignore[attr-defined]

    def _release_optimizer(self) -> None:
        """The old optimizer keeps the state that it has now."""
        assert self._optimizer is not None
        if _is_poptorch(self._optimizer):
            self._optimizer._release(self._device_state() if self.isCompiled() else None)  # type: ignore[attr-defined]

    def _read_attributes(self, optimizer: torch.optim.Optimizer) -> Attributes:
        options = self._options
        previous = self._attributes if optimizer is self._optimizer else None
        return read_attributes(optimizer, automatic_loss_scaling(options), options._relax_optimizer_checks, previous)

    def _log_attributes(self) -> None:
        if self._attributes is None:
            return
        _log.debug("Updating graph optimizer with %s", _as_text(self._attributes.defaults))
        for index, settings in enumerate(self._attributes.groups):
            _log.debug("Updating group %d optimizer with %s", index, _as_text(settings))

    def _device_state(self) -> Dict[str, Any]:
        """The optimizer's state as the device has it: `ipu_state` and `ipu_param`; fetched once after each call."""
        if self._optimizer_state is not None:
            _log.debug("Using cached optimiser state dict")
        elif self._device is not None and self._device.weights_are_there:
            _log.debug("Writing optimiser state tensors from IPU to host.")
            state, parameters = self._device.optimizer_state()
            self._optimizer_state = {"state": state, "parameters": parameters}
        known = self._optimizer_state or {"state": None, "parameters": None}
        return {"ipu_state": known["state"], "ipu_param": known["parameters"]}

    def _load_optimizer_state(self) -> None:
        """Upload a state that was loaded into the optimizer since the last run."""
        if self._optimizer is None or not _is_poptorch(self._optimizer) or self._device is None:
            return
        loaded = self._optimizer._take_loaded_state()  # type: ignore[attr-defined]
        if loaded is not None:
            self._copy_weights_if_newer()
            _log.debug("Writing optimiser state tensors from host to IPU memory")
            self._device.load_optimizer_state(loaded["ipu_state"], loaded["ipu_param"])
            self._optimizer_state = None

    def _named_parameters(self) -> Dict[str, nn.Parameter]:
        return {name: t for name, t in named_slots(self._user_model).items() if isinstance(t, nn.Parameter)}

    def _strategy(self) -> MeanReductionStrategy:
        return self._options.Training.meanAccumulationAndReplicationReductionStrategy

    # ------------------------------------------------------------------------------------------------ files and queries

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Write what `load` and `loadExecutable` need; of a file of this simulator, the trace is made again.

        Raises:
            Error: not compiled.
        """
        self._check_compiled()
        content = {
            "training": self._training,
            "arguments": self._compiled_with,
            "modes": self._modes,
            "options": self._options,
            # together in one pickle, so that the optimizer's parameters stay the model's
            "model": self._user_model if export_model else None,
            "optimizer": self._optimizer if export_model else None,
            "rng_state": self.rng_state if save_rng_state else None,
        }
        write_executable(filename, content)

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        """Compile and save."""
        self.compile(*args, **kwargs)
        self.save(filename, export_model)

    def loadExecutable(self, filename: str) -> None:
        """Compile as the one who saved the file did.

        Like PopTorch's, the file is a pickle: load only files that you trust.

        Raises:
            AssertionError: another version wrote it.
        """
        content = read_executable(filename)
        self._rng_state = content["rng_state"]
        with set_modes(self._model, content["modes"]):
            self._compile(content["arguments"])

    def cycleCount(self) -> int:
        """Not simulated.

        Raises:
            Error: always.
        """
        raise python_error("cycleCount needs the option logCycleCount and IPU hardware; this is a simulator")

    def compilationTime(self) -> datetime.timedelta:
        """How long tracing took.

        Raises:
            Error: not compiled, or the progress bar is off.
        """
        self._check_compiled()
        if not self._options._show_compilation_progress_bar:
            raise python_error("compilationTime needs showCompilationProgressBar(True)")
        return datetime.timedelta(seconds=self._compile_seconds)

    def getPerfCounters(self) -> Dict[str, List[List[float]]]:
        """Moments in seconds at which inputs and outputs moved: ESTIMATES, spread evenly over the time of the call."""
        return self._counters.counters()

    def getLatency(self) -> Tuple[float, float, float]:
        """(least, most, mean) seconds from an input to its output; an estimate."""
        return self._counters.latency("input", "output_complete")

    def getComputeLatency(self) -> Tuple[float, float, float]:
        """(least, most, mean) seconds of computing; an estimate."""
        return self._counters.latency("input_complete", "output")

    def getHostIpuLatency(self) -> Tuple[float, float, float]:
        """(least, most, mean) seconds of an input's way; an estimate."""
        return self._counters.latency("input", "input_complete")

    def getIpuHostLatency(self) -> Tuple[float, float, float]:
        """(least, most, mean) seconds of an output's way; an estimate."""
        return self._counters.latency("output", "output_complete")

    def getTensorNames(self) -> List[str]:
        """Names of the graph's tensors.

        Raises:
            AssertionError: not compiled.
        """
        assert self._graph is not None, _NOT_COMPILED
        return self._graph.tensor_names()

    def getAnchoredTensor(self, short_name: str) -> Tensor:
        """A tensor that `anchorTensor` asked for, of the last run.

        Raises:
            AssertionError: there is none of this name.
        """
        assert short_name in self._anchored, f"no anchored tensor is called {short_name}"
        return self._anchored[short_name]

    def getTransfers(self) -> List[Any]:
        """The tensors that travel between IPUs in each micro batch; of the simulator only."""
        assert self._graph is not None, _NOT_COMPILED
        return list(self._graph.transfers)

    def _check_compiled(self) -> None:
        if not self.isCompiled():
            raise python_error(_NOT_COMPILED)

    def _batching(self) -> Batching:
        options = self._options
        return Batching(
            options.device_iterations,
            options.Training.gradient_accumulation if self._training else 1,
            options.replication_factor,
            options.input_group_size,
            options.input_cgt,
            options.output_mode,
            options.output_return_period,
        )

    def _synthetic(self) -> bool:
        return bool(self._options._Popart.options.get("syntheticDataMode", 0))


def load(filename: str, edit_opts_fn: Optional[Callable[[Options], None]] = None) -> PoplarExecutor:
    """Build the model, its options and optimizer that were saved, and compile.

    Like PopTorch's, the file is a pickle: load only files that you trust.

    Raises:
        AssertionError: the file holds no model, or another version wrote it.
    """
    content = read_executable(filename)
    assert content["model"] is not None, f"{filename} was saved with export_model=False; use loadExecutable"
    options = content["options"]
    options._unfreeze()
    options.deleteIfExists("ipu_version")  # a file that was made without a device is for use with one
    if options.connection_type == ConnectionType.Never:
        options.connectionType(ConnectionType.Always)
    if edit_opts_fn:
        edit_opts_fn(options)
    executor = PoplarExecutor(content["model"], options, content["training"], content["optimizer"])
    executor._rng_state = content["rng_state"]
    executor._compile(content["arguments"])
    return executor


def _own_options(options: Optional[Options], training: bool) -> Options:
    """A frozen copy of the options with this kind of model's defaults; the caller's are frozen, too.

    Raises:
        Error: they are no options, or gradients are accumulated where none are computed.
    """
    if options is None:
        options = Options()
    if not isinstance(options, Options):
        raise python_error(f"options is a {type(options).__name__}, and has to be a poptorch.Options")
    options._freeze()
    own = options.clone()
    if own.defaultOutputMode():
        own.outputMode(OutputMode.Final if training else OutputMode.All)
    if not training and own.Training.gradient_accumulation != 1:
        raise python_error(
            "poptorch.Options().Training.gradientAccumulation must be 1 for inference"
            + (
                "; for a pipeline use deviceIterations"
                if isinstance(own._execution_strategy, PipelinedExecution)
                else ""
            )
        )
    own._freeze()
    return own


def check_overlap(options: Options, graph: Graph) -> None:
    """Refuse loading and sending beside computing where the options leave no room for it.

    Raises:
        Error: says which option is missing.
    """
    if not graph.overlapped:
        return
    strategy, names = options._execution_strategy, " and ".join(sorted(graph.overlapped))
    if not options.TensorLocations.exists("numIOTiles"):
        remedy = "tiles for it: call TensorLocations.numIOTiles(...) on the options"
    elif isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution):
        remedy = "an execution that is not pipelined: call setExecutionStrategy(poptorch.ShardedExecution())"
    elif "outputs" in graph.overlapped and options.output_mode not in (OutputMode.All, OutputMode.Sum):
        remedy = "all outputs: call outputMode(poptorch.OutputMode.All), or Sum"
    else:
        return
    raise python_error(f"the model overlaps its {names} with computing (set_overlap_for_...), which needs {remedy}")


def _as_text(settings: Settings) -> str:
    return ", ".join(f"{name}={s.value:g}{' (const)' if s.constant else ''}" for name, s in settings.items())


def _is_poptorch(optimizer: torch.optim.Optimizer) -> bool:
    return hasattr(optimizer, "variable_attrs")


def _result(leaf: Any) -> Any:
    """A result of training: its backward pass has happened."""
    if isinstance(leaf, Tensor):
        leaf.backward = _NO_BACKWARD  # type: ignore[method-assign]
    return leaf


class _NoBackward:
    """In place of a result's `backward`."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise python_error("backward() cannot be called explicitly; the device computes gradients in each call")

    def __reduce__(self) -> Any:
        return torch.Size, ((),)  # a saved result has to load without the simulator, and as weights only

    def __deepcopy__(self, memo: Any) -> Any:
        return self


_NO_BACKWARD = _NoBackward()
