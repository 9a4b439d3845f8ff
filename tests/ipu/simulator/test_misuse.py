"""Ways to misplace, misconfigure and misuse: each is refused with the right error, what is wrong, and a remedy."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Optional, Type

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipu.simulator as poptorch
from ipu.simulator import Error, Options, inferenceModel, trainingModel


@contextlib.contextmanager
def refused(kind: Type[BaseException], what: str, remedy: str) -> Iterator[None]:
    """An error of exactly this kind, whose text says what is wrong and what to do."""
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert what in str(caught.value)
    assert remedy in str(caught.value)


class Two(nn.Module):
    """Two layers in two blocks, on IPUs of the caller's choice."""

    def __init__(self, first: int = 0, second: int = 1) -> None:
        super().__init__()
        self.a = poptorch.BeginBlock(nn.Linear(4, 4), "a", first)
        self.b = poptorch.BeginBlock(nn.Linear(4, 4), "b", second)

    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss(self.b(self.a(x)), "mean")


class Does(nn.Module):
    """A layer, and what a test does in forward."""

    def __init__(self, what: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(self, x)


def infer(what: Callable[[Any, Tensor], Any], options: Optional[Options] = None) -> Any:
    return inferenceModel(Does(what), options)(torch.randn(4, 4))


def train(what: Callable[[Any, Tensor], Any], options: Optional[Options] = None, optimizer: Any = None) -> Any:
    return trainingModel(Does(what), options, optimizer)(torch.randn(4, 4))


def mean_loss(model: Any, x: Tensor) -> Tensor:
    return poptorch.identity_loss(model.lin(x), "mean")


def accumulating(steps: int) -> Options:
    options = Options()
    options.Training.gradientAccumulation(steps)
    return options


# ------------------------------------------------------------------------------------------------------------ placement


def test_a_weight_used_on_two_ipus_of_a_pipeline_is_refused() -> None:
    class Tied(Two):
        def __init__(self) -> None:
            super().__init__()
            self.b.weight = self.a.weight

    with refused(Error, "weight a.weight lies on IPU 0 and is used on IPU 1", "tie weights within one IPU"):
        trainingModel(Tied(), accumulating(3)).compile(torch.randn(6, 4))


def test_a_buffer_used_on_two_ipus_of_a_pipeline_is_refused() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with poptorch.Block("first", 0):
            x = x + model.mean
        with poptorch.Block("second", 1):
            return x * model.mean

    with refused(Error, "buffer mean lies on IPU 0 and is used on IPU 1", "move the blocks together"):
        infer(forward, Options().deviceIterations(2))


def test_a_pipeline_never_passes_a_tensor_back() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with poptorch.Block("late", 1):
            y = x * 2
        with poptorch.Block("early", 0):
            return y + 1

    with refused(Error, "is made in pipeline stage 1 (IPU 1) and used in stage 0 (IPU 0)", "move the block"):
        infer(forward, Options().deviceIterations(4))


def test_an_operation_after_a_closed_block_belongs_to_none() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with poptorch.Block("only", 0):
            x = x * 2
        return x + 1

    with refused(Error, "No active Block, all the ops must belong to a Block", "put this one into a block"):
        infer(forward)


def test_a_block_that_no_stage_names_is_refused() -> None:
    options = Options().setExecutionStrategy(poptorch.PipelinedExecution("a", "c"))
    with refused(AssertionError, "Unknown Block 'b'", "'a', 'c'"):
        inferenceModel(Two(), options).compile(torch.randn(2, 4))


def test_a_block_without_ipu_is_refused_where_stages_are_ipus() -> None:
    class NoIpu(Does):
        pass

    def forward(model: Any, x: Tensor) -> Tensor:
        with poptorch.Block("nowhere"):
            return x * 2

    with refused(AssertionError, "block 'nowhere' has no ipu_id", "AutoStage.AutoIncrement"):
        infer(forward)


def test_a_module_has_one_block() -> None:
    layer = poptorch.BeginBlock(nn.Linear(2, 2), "a")
    with refused(Error, "module has already been assigned to a block", "removeBlocks"):
        poptorch.BeginBlock(layer, "b")


def test_a_block_begins_at_a_callable_only() -> None:
    with refused(Error, "not at a int", "module or a callable"):
        poptorch.BeginBlock(3)


def test_too_little_accumulation_for_the_pipeline_is_refused() -> None:
    with refused(Error, "gradientAccumulation is 2 and must be at least 3", "2 forward and 1 additional"):
        trainingModel(Two(), accumulating(2)).compile(torch.randn(2, 4))


def test_too_few_device_iterations_for_an_inference_pipeline_are_refused() -> None:
    with refused(Error, "poptorch.Options().deviceIterations must be greater", "pipeline stages, 2; it is 1"):
        inferenceModel(Two()).compile(torch.randn(2, 4))


def test_more_than_64_ipus_are_refused() -> None:
    options = Options().replicationFactor(33).deviceIterations(2)
    with refused(Error, "Too many IPUs requested (66). Experiments that need", "spread over processes"):
        inferenceModel(Two(), options).compile(torch.randn(66, 4))


def test_three_ipus_need_leave_to_be_rounded_up() -> None:
    with refused(Error, "uses 3 IPUs, for which 4 have to be reserved", "autoRoundNumIPUs(True)"):
        inferenceModel(Two(0, 2), Options().deviceIterations(3)).compile(torch.randn(3, 4))


# ---------------------------------------------------------------------------------------------------- the model's graph


def test_an_operator_that_is_not_lowered_is_named_with_its_line() -> None:
    with refused(Error, "aten::_fft_r2c cannot run on an IPU", "Write the model with others"):
        infer(lambda model, x: torch.fft.fft(x).real)


@pytest.mark.parametrize(
    "read",
    [lambda x: x.sum().item(), lambda x: float(x.sum()), lambda x: 1 if x.sum() > 0 else 2, lambda x: x.tolist()],
)
def test_reading_a_value_within_forward_is_refused(read: Callable[[Tensor], Any]) -> None:
    with pytest.raises(Error, match="asks for the value") as caught:
        infer(lambda model, x: x * len(str(read(x))))
    assert "torch.where" in str(caught.value) or "return the tensor from forward" in str(caught.value)


@pytest.mark.parametrize(
    "pick",
    [lambda x: x[x > 0], torch.nonzero, torch.unique, lambda x: torch.where(x > 0)[0], lambda x: F.one_hot(x.long())],
)
def test_a_shape_that_depends_on_values_is_refused(pick: Callable[[Tensor], Tensor]) -> None:
    with refused(Error, "depends on the values of its input", "torch.where, masked_fill or topk"):
        infer(lambda model, x: pick(x))


def test_a_tensor_of_the_host_is_refused_in_the_graph() -> None:
    outside = torch.ones(4)
    with refused(Error, "Expected an IPU tensor but got tensor(device=cpu, shape=(4,)", "make it a buffer"):
        infer(lambda model, x: x + outside)


def test_a_tensor_created_on_the_host_by_name_is_refused_in_the_graph() -> None:
    with refused(Error, "Expected an IPU tensor but got tensor(device=cpu", "create it inside forward"):
        infer(lambda model, x: x + torch.ones(4, device="cpu"))


def test_a_reassigned_buffer_is_refused() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        model.mean = model.mean + x.mean(0)
        return x - model.mean

    with refused(Error, "the buffer mean is reassigned within the model", "mean.copy_(...)"):
        infer(forward)


def test_a_removed_buffer_is_refused() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        del model.mean
        return x * 2

    with refused(Error, "the buffer mean is removed from the model", "keep it"):
        infer(forward)


def test_a_reassigned_parameter_is_refused_and_the_model_is_as_before() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        model.lin.weight = nn.Parameter(model.lin.weight * 2)
        return model.lin(x)

    model = Does(forward)
    weight = model.lin.weight
    with refused(Error, "the parameter lin.weight is reassigned within the model", "copy_"):
        inferenceModel(model)(torch.randn(4, 4))
    assert model.lin.weight is weight


def test_a_broadcast_buffer_that_forward_writes_is_refused() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        model.mean.add_(x.mean(0))
        return mean_loss(model, x - model.mean)

    with refused(Error, "does not support broadcasting buffers", "broadcastBuffers(False)"):
        train(forward, Options().replicationFactor(2))


def test_a_training_model_without_loss_is_refused() -> None:
    with refused(Error, "Couldn't find a loss in graph", "poptorch.identity_loss"):
        train(lambda model, x: model.lin(x).pow(2).mean())


def test_two_independent_losses_are_refused() -> None:
    def forward(model: Any, x: Tensor) -> Any:
        y = model.lin(x)
        return F.mse_loss(y, x), F.l1_loss(y, x)

    with refused(Error, "Multiple independent losses found in graph", "poptorch.identity_loss"):
        train(forward)


def test_a_sum_of_two_losses_has_to_be_marked() -> None:
    def forward(model: Any, x: Tensor) -> Any:
        y = model.lin(x)
        return F.mse_loss(y, x) + F.l1_loss(y, x)

    with refused(Error, "Multiple independent losses found in graph", "poptorch.identity_loss"):
        train(forward)
    train(lambda model, x: poptorch.identity_loss(forward(model, x), "none"))


def test_a_reduction_that_does_not_exist_is_refused() -> None:
    with refused(AssertionError, "reduction='average'", "sum, mean, none"):
        poptorch.identity_loss(torch.ones(2), "average")


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def test_an_autograd_function_is_refused_in_the_graph_and_works_outside() -> None:
    with refused(Error, "torch.autograd.Function", "poptorch.custom_op"):
        infer(lambda model, x: Double.apply(x))
    assert Double.apply(torch.ones(1)).tolist() == [2]


def test_gradients_within_forward_are_refused() -> None:
    with refused(Error, "gradients cannot be asked for within forward", "poptorch.trainingModel"):
        infer(lambda model, x: torch.autograd.grad(model.lin(x).sum(), model.lin.weight)[0])


def test_a_custom_operator_that_nobody_described_is_refused() -> None:
    with refused(Error, "no implementation of the custom operator test.Missing:1", "ipu.simulator.register_custom_op"):
        infer(lambda model, x: poptorch.custom_op([x], "Missing", "test", 1, [x])[0])


def test_several_out_arguments_are_refused() -> None:
    with refused(Error, "with several out= cannot be traced", "assign its results"):
        infer(lambda model, x: torch.max(x, 1, out=(torch.empty(4), torch.empty(4, dtype=torch.long)))[0])


def test_a_serialized_product_needs_a_dimension_that_can_be_cut() -> None:
    mode = poptorch.MatMulSerializationMode.OutputChannels
    with refused(Error, "OutputChannels has 4 entries", "multiple of factor=3"):
        infer(lambda model, x: poptorch.serializedMatMul(x, model.lin.weight, mode, 3))


def test_a_serialized_product_needs_equal_ranks() -> None:
    mode = poptorch.MatMulSerializationMode.ReducingDim
    with refused(Error, "got 2 and 3", "2 or 3"):
        infer(lambda model, x: poptorch.serializedMatMul(x, model.lin.weight[None], mode, 2))


def test_available_memory_is_for_products() -> None:
    with refused(Error, "matrix product or convolution", "right after the product"):
        infer(lambda model, x: poptorch.set_available_memory(x.relu(), 0.2))
    infer(lambda model, x: poptorch.set_available_memory(model.lin(x), 0.2))


@pytest.mark.parametrize("name", ["cond", "for_loop", "CPU"])
def test_control_flow_is_for_inference(name: str) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        if name == "cond":
            y = poptorch.cond(x.sum() > 0, lambda a: a * 2, [x], lambda a: a, [x])[0]
        elif name == "for_loop":
            y = poptorch.for_loop(2, lambda a: a * 2, [x])[0]
        else:
            y = poptorch.CPU(lambda a: a * 2, "host")(x)
        return mean_loss(model, y)

    with refused(Error, f"poptorch.{name} is for inference only", "leave it out"):
        train(forward)
    infer(forward)


def test_a_loop_returns_what_it_takes() -> None:
    with refused(Error, "the body of for_loop returns (4, 2)", "(4, 4) torch.float32 is expected"):
        infer(lambda model, x: poptorch.for_loop(2, lambda a: a[:, :2], [x])[0])


# ------------------------------------------------------------------------------------------------------------ arguments


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with refused(AssertionError, "Invalid batch dimension", "gradientAccumulation (3)"):
        train(mean_loss, accumulating(3))


def test_an_input_without_elements_is_refused() -> None:
    with refused(Error, "Zero-sized tensors are unsupported", "[0, 4]"):
        inferenceModel(Does(mean_loss))(torch.zeros(0, 4))


@pytest.mark.parametrize(
    ("later", "what"),
    [
        (torch.zeros(2, 4), "Shape mismatch for x: expected torch.Size([4, 4]) but got torch.Size([2, 4])"),
        (torch.zeros(4, 4).half(), "Data type mismatch for x: expected torch.float32 but got torch.float16"),
        ([torch.zeros(4, 4)], "Type mismatch for x"),
        (5, "Type mismatch for x"),
    ],
)
def test_another_input_than_compiled_for_is_refused(later: Any, what: str) -> None:
    model = inferenceModel(Does(mean_loss))
    model(torch.zeros(4, 4))
    with refused(Error, what, "destroy()"):
        model(later)


def test_a_constant_of_the_compiled_program_cannot_change() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: int = 2) -> Tensor:
            return x * factor

    model = inferenceModel(Scaled())
    assert model(torch.ones(1), 5).tolist() == [5]
    with refused(Error, "Value mismatch for factor: expected 5 but got 2", "destroy()"):
        model(torch.ones(1))


def test_a_missing_argument_is_named() -> None:
    with refused(Error, "Mandatory parameter x missing", "forward takes x"):
        inferenceModel(Does(mean_loss))()


@pytest.mark.parametrize("name", ["deviceIterations", "replicationFactor"])
def test_a_factor_of_zero_is_refused_when_compiling(name: str) -> None:
    options = Options()
    getattr(options, name)(0)
    with refused(Error, "=0 is below 1", f"poptorch.Options.{name}"):
        infer(mean_loss, options)


def test_overlap_needs_tiles_an_unpipelined_execution_and_all_outputs() -> None:
    def forward(model: Any, x: Tensor) -> Any:
        x = poptorch.set_overlap_for_input(x, poptorch.OverlapMode.OverlapDeviceIterationLoop)
        return poptorch.set_overlap_for_output(x * 2, poptorch.OverlapMode.OverlapDeviceIterationLoop)

    options = Options().outputMode(poptorch.OutputMode.Final)
    with refused(Error, "overlaps its inputs and outputs with computing", "TensorLocations.numIOTiles"):
        infer(forward, options.clone())
    options.TensorLocations.numIOTiles(32)
    with refused(Error, "overlaps its inputs and outputs with computing", "poptorch.ShardedExecution()"):
        infer(forward, options.clone())
    options.setExecutionStrategy(poptorch.ShardedExecution())
    with refused(Error, "overlaps its inputs and outputs with computing", "poptorch.OutputMode.All"):
        infer(forward, options.clone())
    infer(forward, options.outputMode(poptorch.OutputMode.All))


# --------------------------------------------------------------------------------------------------- options and states


def test_options_are_final_once_a_model_has_them() -> None:
    options = Options()
    model = inferenceModel(Does(mean_loss), options)
    for frozen in (options, model.options):
        with pytest.raises(AttributeError, match="frozen Options"):
            frozen.deviceIterations(2)


def test_inference_does_not_accumulate() -> None:
    with refused(Error, "Training.gradientAccumulation must be 1 for inference", "deviceIterations"):
        inferenceModel(Does(mean_loss), accumulating(2))


def test_options_of_another_type_are_refused() -> None:
    with refused(Error, "options is a dict", "poptorch.Options"):
        inferenceModel(Does(mean_loss), {})  # type: ignore[arg-type]


def test_a_model_is_trained_by_one_executor() -> None:
    model = Does(mean_loss)
    first = trainingModel(model)
    with refused(RuntimeError, "already been wrapped", "destroy that wrapper"):
        trainingModel(model)
    assert not first.isCompiled()


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.copyWeightsToHost(),
        lambda model: model.copyWeightsToDevice(),
        lambda model: model.copyNamedBuffersToDevice(),
        lambda model: model.save("never"),
        lambda model: model.rng_state,
        lambda model: setattr(model, "rng_state", [1]),
        lambda model: model.attachToDevice(),
        lambda model: model.detachFromDevice(),
        lambda model: model.compilationTime(),
    ],
)
def test_nothing_can_be_asked_of_a_model_that_is_not_compiled(call: Callable[[Any], Any]) -> None:
    with refused(Error, "Model has not been compiled or has been destroyed.", "Call it, or compile(...)"):
        call(trainingModel(Does(mean_loss)))


def test_attaching_and_detaching_alternate() -> None:
    model = inferenceModel(Does(mean_loss))
    model(torch.zeros(4, 4))
    with refused(Error, "Device is already attached", "detachFromDevice"):
        model.attachToDevice()
    model.detachFromDevice()
    with refused(Error, "Device is not attached", "attachToDevice"):
        model.detachFromDevice()


def test_an_offline_target_compiles_and_does_not_run() -> None:
    model = inferenceModel(Does(mean_loss), Options().useOfflineIpuTarget())
    model.compile(torch.zeros(4, 4))
    assert model.isCompiled() and not model.isAttachedToDevice()
    with refused(AssertionError, "Trying to run a model on an offline device", "ConnectionType"):
        model(torch.zeros(4, 4))
    with refused(AssertionError, "Trying to run a model on an offline device", "ConnectionType"):
        model.attachToDevice()


def test_a_constant_of_the_optimizer_cannot_change_after_compilation() -> None:
    model = Does(mean_loss)
    optimizer = poptorch.optim.Adam(model.parameters(), lr=1e-3)
    training = trainingModel(model, optimizer=optimizer)
    training(torch.zeros(4, 4))
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1
    with refused(Error, "weight_decay", 'markAsVariable("weight_decay")'):
        training.setOptimizer(optimizer)


def test_an_optimizer_that_the_device_does_not_have_is_refused() -> None:
    model = Does(mean_loss)
    with refused(AssertionError, "Unsupported optimizer type Adadelta", "poptorch.optim"):
        trainingModel(model, optimizer=torch.optim.Adadelta(model.parameters()))


def test_amsgrad_is_refused() -> None:
    model = Does(mean_loss)
    with refused(ValueError, "amsgrad", "without it"):
        trainingModel(model, optimizer=torch.optim.Adam(model.parameters(), amsgrad=True))


def test_a_half_accumulator_after_compilation_is_refused() -> None:
    model = Does(mean_loss)
    training = trainingModel(model, optimizer=poptorch.optim.Adam(model.parameters()))
    training(torch.zeros(4, 4))
    with refused(ValueError, "is already compiled", "destroy()"):
        training.setOptimizer(poptorch.optim.Adam(model.parameters(), accum_type=torch.float16))


def test_a_buffer_that_does_not_exist_cannot_be_updatable() -> None:
    with refused(Error, "updatableNamedBuffers names median", "mean"):
        infer(mean_loss, Options().updatableNamedBuffers(["median"]))


def test_named_buffers_are_copied_only_where_the_option_names_them() -> None:
    model = inferenceModel(Does(mean_loss))
    model(torch.zeros(4, 4))
    with refused(Error, "copyNamedBuffersToDevice", "updatableNamedBuffers"):
        model.copyNamedBuffersToDevice()


def test_the_backward_pass_of_a_result_cannot_be_called() -> None:
    loss = train(mean_loss)
    assert not loss.requires_grad
    with refused(Error, "backward() cannot be called explicitly", "in each call"):
        loss.backward()


def test_an_anchor_that_does_not_exist_is_refused() -> None:
    options = Options()
    options.anchorTensor("short", "no such tensor")
    with refused(Error, "the graph has no tensor no such tensor", "getTensorNames()"):
        infer(mean_loss, options)


def test_a_compile_hook_is_a_function() -> None:
    with refused(RuntimeError, "must be callable", "function"):
        poptorch.registerPreCompileHook(3)  # type: ignore[arg-type]


def test_cycles_are_counted_on_hardware_only() -> None:
    with refused(Error, "Cycle count logging is only supported on actual IPU hardware", "logCycleCount(False)"):
        infer(mean_loss, Options().useIpuModel(True).logCycleCount(True))


# ------------------------------------------------------------------------------------------------------- half precision


class Overflowing(nn.Module):
    """A half model whose activations are beyond 65504."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8).half()

    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss((self.lin(x) * 300).pow(2), "sum")


def test_an_overflow_stops_the_run_where_exceptions_are_on() -> None:
    options = Options()
    options.Precision.enableFloatingPointExceptions(True)
    training = trainingModel(Overflowing(), options)
    with pytest.raises(Error, match="floating point exception") as caught:
        training(torch.randn(4, 8).half() * 10)
    assert "float32" in str(caught.value)


def test_an_overflow_saturates_where_exceptions_are_off_and_training_stalls() -> None:
    """The loss stays at the largest half number: no error, and nothing learned that anybody could see."""
    torch.manual_seed(0)
    model = Overflowing()
    training = trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1e-6))
    x = torch.randn(4, 8).half() * 10
    losses = [training(x).item() for _ in range(4)]
    assert losses == [65504.0] * 4
