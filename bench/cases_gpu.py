"""What is measured on GPUs: large batches under bfloat16, and drawing with the pictures decoded.

Nothing in here needs a GPU but its speed: with --quick it runs on any CPU.
"""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from bench.cases import LOSSES, THEIRS, Scope, pictures_case
from bench.contest import Case, Contestant
from bench.settings import make_setting, training_arithmetic

TRAINED: Tuple[Tuple[str, int], ...] = (
    ("L16", 64),
    ("1B", 8),
)  # with the samples of a batch: ours and theirs stay in memory
ENCODED = 64  # pictures of a batch that is encoded in the loop
DRAWN = (1, 256)  # pictures of a batch
STEPS = 10  # of a repetition: a GPU is given work ahead
RIVALS = (f"{THEIRS} bf16",)


def gpu_training(scope: Scope) -> List[Case]:
    """Training steps from image tokens, under bfloat16 autocast."""
    cases = []
    for usual, batch in TRAINED:
        for name in scope.settings(usual):
            setting = make_setting(name, batch=2 if scope.quick else scope.batch or batch)
            given = {"setting": name, "changes": {"batch": setting.batch}, "steps": STEPS}
            contestants = [scope.ours("bf16", RIVALS, **given), scope.theirs("bf16", **given)]
            comparison = Contestant("comparison", "bench.training:compare", {"setting": name, "changes": {"batch": 2}})
            needs = {"arithmetic": STEPS * training_arithmetic(setting)}
            cases.append(
                scope.case(
                    f"training step, {usual}", "samples/s", STEPS * setting.batch, contestants, close=LOSSES,
                    needs=needs, comparison=comparison,
                )
            )  # fmt: skip
    return cases


def gpu_pictures(scope: Scope) -> List[Case]:
    """Training steps from pictures."""
    batch = 2 if scope.quick else scope.batch or ENCODED
    return [
        pictures_case(scope, name, make_setting(name, batch=batch), "bf16", ("bf16",)) for name in scope.settings("L16")
    ]


def gpu_drawing(scope: Scope) -> List[Case]:
    """Drawing pictures, decoded: one, and a large batch."""
    return [
        _drawing_case(scope, name, batch) for name in scope.settings("L16") for batch in DRAWN[: 1 + (not scope.quick)]
    ]


def _drawing_case(scope: Scope, name: str, batch: int) -> Case:
    given: Dict[str, Any] = {
        "setting": name, "batch": batch, "greedy": False, "precision": "bf16", "vqgan": scope.vqgan,
    }  # fmt: skip
    shipped, repaired = f"{THEIRS} as shipped", f"{THEIRS} repaired, masked"
    theirs = "bench.drawing:theirs"
    contestants = [
        Contestant("ours", "bench.drawing:ours", given, (shipped, repaired)),
        Contestant(
            shipped, theirs, {**given, "repaired": False, "steps": scope.shipped_steps}, repetitions=1, warmup=0
        ),
        Contestant(repaired, theirs, {**given, "repaired": True, "masked": True}, repetitions=2, warmup=1),
    ]
    return scope.case(f"drawing {batch} with decoding, {name}", "pictures/s", batch, contestants)
