"""How the blocks of a model become stages on IPUs: pipelined, sharded or phased execution."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from ipu.simulator.enums import AutoStage, Liveness
from ipu.simulator.poptorch_core import python_error

Placer = Callable[[str, Optional[int]], Tuple[int, int]]
"""(user id of a block, its IPU if it has one) -> (stage number, IPU)."""


def require(condition: bool, message: str) -> None:
    """Raise AssertionError, which PopTorch's programs expect and `python -O` would drop from an `assert`."""
    if not condition:
        raise AssertionError(message)


class Stage:
    """One or more blocks that run on one IPU, one after the other.

    Args:
        block_ids: the user ids of the blocks.
    """

    def __init__(self, *block_ids: str) -> None:
        require(all(isinstance(block, str) for block in block_ids), f"block ids are texts, got {block_ids}")
        self._blocks = block_ids
        self._stage_id = -1
        self._phase_id = -1
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> Tuple[str, ...]:
        """The user ids of the stage's blocks."""
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Pin the stage to an IPU, whatever its blocks say."""
        require(isinstance(ipu, int), f"Stage.ipu({ipu!r}): an IPU is a whole number")
        self._ipu = ipu
        return self


class Phase:
    """Stages that run at the same time in phased execution.

    Args:
        arg: stages, or the ids of the blocks of a single one.
    """

    def __init__(self, *arg: Union[str, Stage]) -> None:
        stages = [item for item in arg if isinstance(item, Stage)]
        blocks = [item for item in arg if isinstance(item, str)]
        require(len(arg) in (len(stages), len(blocks)), f"a Phase takes stages only or block ids only, got {arg}")
        self.stages: Sequence[Stage] = stages if stages else [Stage(*blocks)]

    def stage(self, idx: int) -> Stage:
        """The stage at a position."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> None:
        """Pin the stages to these IPUs, one each."""
        count = len(self.stages)
        require(len(ipus) == count, f"Phase.ipus{ipus}: the phase has {count} stages; name one IPU for each")
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


class ExecutionStrategy:
    """What all strategies share: which blocks they name, and where a block goes."""

    def __init__(self) -> None:
        self._block_map: Dict[str, Stage] = {}

    def stage(self, block_id: str) -> Stage:
        """The stage that names a block (AssertionError where none does)."""
        require(block_id in self._block_map, f"Unknown Block {block_id!r}: {self._expected()}")
        return self._block_map[block_id]

    def backendOptions(self) -> Dict[str, Any]:
        """What the compiler is told."""
        raise NotImplementedError

    def _add(self, stage: Stage) -> None:
        for block in stage.blocks:
            require(block not in self._block_map, f"block {block!r} is in more than one stage; name it once")
            self._block_map[block] = stage

    def _placer(self) -> Placer:
        """A fresh mapping of blocks in the order of one trace."""
        return self._place_named

    def _place_named(self, user_id: str, ipu_id: Optional[int]) -> Tuple[int, int]:
        stage = self.stage(user_id)
        ipu = ipu_id if stage._ipu is None else stage._ipu
        return stage._stage_id, stage._stage_id if ipu is None else ipu

    def _expected(self) -> str:
        return f"the execution strategy names {', '.join(map(repr, self._block_map)) or 'no block'}"


class PipelinedExecution(ExecutionStrategy):
    """Stages work on successive micro batches at the same time. This is what options start with.

    Args:
        args: nothing (as `AutoStage.SameAsIpu`), one `AutoStage`, or the stages in order, each a `Stage`, a block id
            or a list of block ids.
    """

    def __init__(self, *args: Union[AutoStage, Stage, str, Sequence[str]]) -> None:
        super().__init__()
        self._auto_stage = AutoStage.SameAsIpu
        if len(args) == 1 and isinstance(args[0], AutoStage):
            self._auto_stage = args[0]
            return
        for number, arg in enumerate(args):
            stage = _stage(arg)
            stage._stage_id = number
            self._add(stage)

    def backendOptions(self) -> Dict[str, Any]:
        """Execution mode 0: pipelined."""
        return {"execution_mode": 0}

    def _placer(self) -> Placer:
        return self._place_named if self._block_map else _AutomaticStages(self._auto_stage)


class ShardedExecution(PipelinedExecution):
    """Stages on their IPUs as in a pipeline, but one after the other for each micro batch."""

    def backendOptions(self) -> Dict[str, Any]:
        """Execution mode 1: sharded."""
        return {"execution_mode": 1}


class _AutomaticStages:
    """Stages of blocks that no strategy names, by `AutoStage`."""

    def __init__(self, auto_stage: AutoStage) -> None:
        self._auto_stage = auto_stage
        self._stages: Dict[str, int] = {}

    def __call__(self, user_id: str, ipu_id: Optional[int]) -> Tuple[int, int]:
        if user_id not in self._stages:
            self._stages[user_id] = self._next(user_id, ipu_id)
        stage = self._stages[user_id]
        return stage, stage if ipu_id is None else ipu_id

    def _next(self, user_id: str, ipu_id: Optional[int]) -> int:
        if self._auto_stage == AutoStage.AutoIncrement:
            return len(self._stages) + 1  # 0 is for what runs before the first block
        if ipu_id is None:
            raise AssertionError(
                f"block {user_id!r} has no ipu_id, and AutoStage.SameAsIpu numbers stages by it; give the block an "
                "ipu_id, or use AutoStage.AutoIncrement"
            )
        return ipu_id


class _PhasedExecution(ExecutionStrategy):
    """Phases that run one after the other; `phases` holds `Phase`s, or lists of stages or of block ids."""

    _serial: bool

    def __init__(self, *phases: Union[Phase, Stage, str, Sequence[Any]]) -> None:
        super().__init__()
        if len(phases) == 1 and isinstance(phases[0], list) and _holds_phases(phases[0]):
            phases = tuple(phases[0])
        require(bool(phases), f"{type(self).__name__} needs its phases; there is no automatic choice")
        self._tensors_liveness = Liveness.AlwaysLive
        self._separate_backward_phase = False
        self._phases: List[Phase] = []
        for number, given in enumerate(phases):
            phase = given if isinstance(given, Phase) else Phase(*(given if isinstance(given, list) else [given]))
            self._phases.append(phase)
            for stage in phase.stages:
                stage._phase_id = number
                self._add(stage)

    def phase(self, phase: int) -> Phase:
        """The phase at a position."""
        require(isinstance(phase, int) and phase >= 0, f"phase({phase!r}): phases are counted from 0")
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> _PhasedExecution:
        """Whether the backward pass starts with a phase of its own, rather than in the last forward one."""
        require(isinstance(use, bool), f"useSeparateBackwardPhase({use!r}): write True or False")
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> Dict[str, Any]:
        """Execution mode 2: phased."""
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
            "serial_phases_execution": self._serial,
        }

    def _place_named(self, user_id: str, ipu_id: Optional[int]) -> Tuple[int, int]:
        stage = self.stage(user_id)
        ipu = ipu_id if stage._ipu is None else stage._ipu
        if ipu is None:
            raise python_error(f"block {user_id!r} of a phase has no IPU; give it by Phase.ipus or Stage.ipu")
        return stage._phase_id, ipu


class ParallelPhasedExecution(_PhasedExecution):
    """Phases alternate between two groups of IPUs."""

    _serial = False

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Whether a forward phase's tensors wait for the backward pass outside the IPU."""
        require(isinstance(off_chip, bool), f"sendTensorsOffChipAfterFwd({off_chip!r}): write True or False")
        self._tensors_liveness = Liveness.OffChipAfterFwd if off_chip else Liveness.AlwaysLive
        return self


class SerialPhasedExecution(_PhasedExecution):
    """Phases follow each other on one group of IPUs."""

    _serial = True

    def setTensorsLiveness(self, liveness: Liveness) -> SerialPhasedExecution:
        """How long a forward phase's tensors stay on the IPU."""
        require(isinstance(liveness, Liveness), f"setTensorsLiveness({liveness!r}): it takes a poptorch.Liveness")
        self._tensors_liveness = liveness
        return self


def _stage(arg: Any) -> Stage:
    if isinstance(arg, Stage):
        return arg
    if isinstance(arg, str):
        return Stage(arg)
    require(isinstance(arg, (list, tuple)), f"a stage is a Stage, a block id or a list of block ids, got {arg!r}")
    return Stage(*arg)


def _holds_phases(given: List[Any]) -> bool:
    return bool(given) and all(isinstance(item, (Phase, list)) for item in given)
