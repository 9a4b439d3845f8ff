"""Blocks, stages and IPUs: where operations run, how long a pipeline is, and what travels between memories."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any, List, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipu.simulator as poptorch
from ipu.simulator import Options, inferenceModel, trainingModel
from ipu.simulator.poptorch_core import Error
from ipu.simulator.stages import Place, Stages

AUTOMATIC = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)


class Chain(nn.Module):
    """One layer for each entry, in a block on that IPU; None: in no block."""

    def __init__(self, *ipus: Optional[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in ipus)
        for position, (layer, ipu) in enumerate(zip(self.layers, ipus)):
            if ipu is not None:
                poptorch.BeginBlock(layer, f"B{position}", ipu)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return poptorch.identity_loss(x, "mean")


def compiled(model: nn.Module, strategy: Any = None, accumulation: int = 16) -> Any:
    options = Options().autoRoundNumIPUs(True)
    options.Training.gradientAccumulation(accumulation)
    if strategy is not None:
        options.setExecutionStrategy(strategy)
    training = trainingModel(model, options)
    training.compile(torch.randn(accumulation, 4))
    return training


def places(training: Any) -> List[Tuple[int, int]]:
    """Stage and IPU of each layer."""
    return [(n.place.stage, n.place.ipu) for n in training._graph.nodes if n.name == "linear"]


@pytest.mark.parametrize(
    ("ipus", "forward", "training"),
    [
        ((0,), 1, 1),
        ((0, 0), 1, 1),
        ((0, 1), 2, 3),
        ((0, 1, 2, 3), 4, 7),
        ((0, 1, 0), 3, 5),
        ((0, 0, 1, 1, 2), 3, 5),
        ((1,), 2, 3),
    ],
)
def test_stages_are_counted_where_the_ipu_changes(ipus: Tuple[int, ...], forward: int, training: int) -> None:
    stages = Stages(lambda user_id, ipu_id: (int(user_id), int(ipu_id or 0)), pipelined=True)
    for number, ipu in enumerate(ipus):
        stages.begin(str(number), ipu)
    assert (stages.forward_stages, stages.training_stages) == (forward, training)
    stages.check_depth(training, 1, training=True)
    stages.check_depth(1, forward, training=False)
    if training > 1:
        with pytest.raises(Error, match="gradientAccumulation"):
            stages.check_depth(training - 1, 100, training=True)
        with pytest.raises(Error, match="deviceIterations must be greater"):
            stages.check_depth(100, forward - 1, training=False)


def test_the_length_rule_is_the_pipelines_only() -> None:
    with pytest.raises(Error, match=r"must be at least 3, .* 2 forward and 1 additional"):
        compiled(Chain(0, 1), accumulation=2)
    compiled(Chain(0, 1), poptorch.ShardedExecution(), accumulation=1)


def test_lower_ipus_that_no_block_uses_are_reserved() -> None:
    stages = Stages(lambda user_id, ipu_id: (0, int(ipu_id or 0)), pipelined=True)
    assert stages.ipus == 1
    stages.begin("a", 3)
    assert stages.ipus == 4


def test_what_comes_before_the_first_block_runs_on_ipu_0() -> None:
    assert places(compiled(Chain(None, 0, None, 1))) == [(0, 0), (0, 0), (0, 0), (1, 1)]


def test_automatic_stages_begin_at_one_and_a_block_that_comes_back_finds_its_stage() -> None:
    assert places(compiled(Chain(None, 0, 1, 2), AUTOMATIC)) == [(0, 0), (1, 0), (2, 1), (3, 2)]


def test_named_stages_and_their_ipus_come_from_the_strategy() -> None:
    strategy = poptorch.PipelinedExecution(poptorch.Stage("B0", "B1").ipu(1), ["B2"])
    strategy.stage("B2").ipu(0)
    assert places(compiled(Chain(5, 6, 7), strategy)) == [(0, 1), (0, 1), (1, 0)]


def test_a_pipeline_computes_what_one_ipu_does() -> None:
    plain = Chain(0, 1, 2)
    reference = copy.deepcopy(plain)
    x = torch.randn(16 * 2, 4)
    options = Options().outputMode(poptorch.OutputMode.All).autoRoundNumIPUs(True)
    options.Training.gradientAccumulation(16)
    losses = trainingModel(plain, options, torch.optim.SGD(plain.parameters(), lr=0.1))(x)
    wanted = [reference(part) for part in x.split(2)]
    (sum(wanted) / 16).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(losses, torch.stack(wanted).detach())
    for one, other in zip(plain.parameters(), reference.parameters()):
        torch.testing.assert_close(one.detach(), (other - 0.1 * other.grad).detach())


def test_transfers_name_both_ends_and_the_size_and_are_made_once() -> None:
    class Skip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with poptorch.Block("a", 0):
                y = x * 2
            with poptorch.Block("b", 1):
                return y * y + y

    model = inferenceModel(Skip(), Options().deviceIterations(2))
    model(torch.randn(6, 4))
    assert [(t.source, t.target, t.size) for t in model.getTransfers()] == [(0, 1, 3 * 4 * 4)]


def test_half_tensors_travel_at_half_the_size() -> None:
    plain = Chain(0, 1).half()
    training = trainingModel(plain, Options().setExecutionStrategy(poptorch.ShardedExecution()))
    training(torch.randn(3, 4).half())
    assert [t.size for t in training.getTransfers()] == [3 * 4 * 2]


def test_a_tensor_that_was_changed_lies_where_that_happened() -> None:
    class Changed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with poptorch.Block("a", 0):
                y = x * 2
            with poptorch.Block("b", 1):
                y += 1
            with poptorch.Block("c", 0):
                return y * 1

    with pytest.raises(Error, match=r"made in pipeline stage 1 \(IPU 1\) and used in stage 0"):
        inferenceModel(Changed(), Options().deviceIterations(4))(torch.randn(4, 4))
    sharded = Options().setExecutionStrategy(poptorch.ShardedExecution())
    assert inferenceModel(Changed(), sharded)(torch.zeros(2)).tolist() == [1, 1]


def test_a_weight_may_serve_two_stages_of_one_ipu() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.body = nn.Embedding(5, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            poptorch.Block.start("first", 0)
            h = self.table(x)
            poptorch.Block.start("body", 1)
            h = self.body(h)
            poptorch.Block.start("last", 0)
            return F.cross_entropy(h @ self.table.weight.t(), x)

    options = Options().setExecutionStrategy(AUTOMATIC)
    options.Training.gradientAccumulation(5)
    trainingModel(Tied(), options)(torch.arange(5))


def test_an_input_may_serve_several_stages() -> None:
    class Labels(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            poptorch.Block.start("a", 0)
            h = x * y
            poptorch.Block.start("b", 1)
            return h + y

    inferenceModel(Labels(), Options().deviceIterations(2))(torch.ones(2), torch.ones(2))


# --------------------------------------------------------------------------------------------------------------- blocks


def test_blocks_do_nothing_on_the_host() -> None:
    chain = Chain(0, 1)
    x = torch.randn(2, 4)
    with poptorch.Block("any"):
        inside = chain(x)
    poptorch.Block.start("other")
    poptorch.Block.useAutoId()
    torch.testing.assert_close(chain(x), inside)


def test_begin_block_returns_the_module_itself_and_survives_copies() -> None:
    layer = nn.Linear(2, 2)
    assert poptorch.BeginBlock(layer, "a", 1) is layer and type(layer) is nn.Linear
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert poptorch.module_repr(other).startswith("BeginBlock(user_id=a, ipu_id=1) Linear(")
        poptorch.removeBlocks(other)
        assert poptorch.module_repr(other) == repr(nn.Linear(2, 2))
        poptorch.BeginBlock(other, "b")


def test_remove_blocks_takes_all_within_and_modules_only() -> None:
    chain = Chain(0, 1)
    poptorch.removeBlocks(chain)
    assert places(compiled(chain, accumulation=1)) == [(0, 0), (0, 0)]
    with pytest.raises(AssertionError, match="torch.nn.Module"):
        poptorch.removeBlocks("no module")  # type: ignore[arg-type]


def test_another_method_than_the_call_does_not_begin_the_block() -> None:
    chain = Chain(0, 1)

    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = chain

        def forward(self, x: Tensor) -> Tensor:
            x = self.chain.layers[1].forward(x)
            return poptorch.identity_loss(x, "mean")

    assert places(compiled(Direct())) == [(0, 0)]


def test_functions_can_be_blocks_by_name_and_by_decoration() -> None:
    @poptorch.BlockFunction("decorated", 1)
    def double(x: Tensor) -> Tensor:
        return x * 2

    begins = poptorch.BeginBlock(lambda x: x + 1, "begun", 0)
    assert (begins._user_id, begins._ipu_id) == ("begun", 0)

    class Functions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return double(begins(x))

    model = inferenceModel(Functions(), Options().deviceIterations(2))
    assert model(torch.ones(2)).tolist() == [4, 4]
    assert [node.place for node in model._graph.nodes] == [Place(0, 0), Place(1, 1)]
    assert double(torch.ones(1)).tolist() == [2]


def test_nothing_is_active_after_an_inner_block_ends() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with poptorch.Block("outer", 0):
                with poptorch.Block("inner", 0):
                    x = x * 2
                return x + 1

    with pytest.raises(Error, match="No active Block"):
        inferenceModel(Nested())(torch.ones(1))


def test_blocks_without_a_name_are_numbered_over_all_models_and_hooks_keep_theirs() -> None:
    class Unnamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = poptorch.BeginBlock(nn.Linear(2, 2), ipu_id=0)
            self.blocks: List[Any] = []

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            block = poptorch.Block(ipu_id=0)
            self.blocks.append(block)
            with block:
                return x * 2

    poptorch.Block.useAutoId()
    model = Unnamed()
    for _ in range(2):
        inferenceModel(model)(torch.ones(1, 2))
    hook = next(iter(model.layer._forward_pre_hooks.values()))
    assert hook._user_id == "0" and [block._user_id for block in model.blocks] == ["1", "2"]
    poptorch.Block.useAutoId()
    other = Unnamed()
    inferenceModel(other)(torch.ones(1, 2))
    assert [block._user_id for block in other.blocks] == ["1"]


@pytest.mark.parametrize("phased", [False, True])
def test_blocks_are_logged_with_stage_phase_and_ipu(phased: bool, caplog: pytest.LogCaptureFixture) -> None:
    strategy: Any = poptorch.SerialPhasedExecution(
        poptorch.Phase(poptorch.Stage("B0").ipu(0)), poptorch.Phase(poptorch.Stage("B1").ipu(1))
    )
    with caplog.at_level(logging.DEBUG, logger="poptorch::python"):
        compiled(Chain(0, 1), strategy if phased else None)
    lines = [r.message for r in caplog.records if r.message.startswith("Starting block")]
    places = (
        ["stage=-1 phase=0 ipu=0", "stage=-1 phase=1 ipu=1"]
        if phased
        else ["stage=0 phase=-1 ipu=0", "stage=1 phase=-1 ipu=1"]
    )
    assert lines == [f"Starting block id=B{i} {place}" for i, place in enumerate(places)]


def test_printing_shows_the_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    poptorch.print(Chain(0, 1))
    assert "(1): BeginBlock(user_id=B1, ipu_id=1) Linear(in_features=4" in capsys.readouterr().out
