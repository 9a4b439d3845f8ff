"""What is measured on any machine: cases by group, each with its contestants. Those for GPUs are in `cases_gpu.py`."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Tuple

from bench import peers
from bench.contest import Case, Contestant
from bench.settings import Setting, drawing_traffic, make_setting, training_arithmetic
from models.options import ATTENTION_TYPES

THEIRS = peers.NAME
SHIPPED, CACHED, MASKED = f"{THEIRS} as shipped", f"{THEIRS} repaired", f"{THEIRS} repaired, masked"
TINY_VQGAN = {
    "n_embed": 16, "embed_dim": 8, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [4],
    "resolution": 8, "z_channels": 32,
}  # fmt: skip
LOSSES = {"fp32 loss": 1e-4, "bf16 loss": 1e-2}  # how far those of the first step may lie apart, as a share of them
GUIDANCE = 3.0
EPOCHS = 10  # over which the time of encoding once is spread
PICTURES = 1024  # JPEG files that one epoch reads: enough that filling the loader counts for little
CURVES: Dict[str, Tuple[int, ...]] = {
    "depth": (2, 4, 8, 16), "dim": (128, 256, 512, 1024), "batch": (1, 2, 4, 8, 16), "grid": (8, 16, 32),
}  # fmt: skip

SIZES = {"dim": "width", "depth": "layers"}  # in the curves' titles


@dataclasses.dataclass(frozen=True)
class Scope:
    """What a run of the bench covers.

    Attributes:
        device: cpu or cuda.
        quick: tiny sizes, to try the bench itself.
        with_peers: whether theirs are measured, too.
        options: options of training that ours get beside the defaults.
        shipped_steps: tokens that are timed of a picture that DALLE-pytorch draws as shipped; None: all.
        sizes: names of the settings to measure, of those that a group has; empty: all.
        batch: samples of a batch in the groups for GPUs; None: what fits most of them, twice.
        folder: of JPEG files, for the group that reads them.
    """

    device: str = "cpu"
    quick: bool = False
    with_peers: bool = True
    options: Dict[str, Any] = dataclasses.field(default_factory=dict)
    shipped_steps: Optional[int] = None
    sizes: Tuple[str, ...] = ()
    batch: Optional[int] = None
    folder: Optional[str] = None

    def settings(self, *usual: str) -> List[str]:
        """The settings of a group."""
        return ["tiny"] if self.quick else [name for name in usual if not self.sizes or name in self.sizes]

    @property
    def vqgan(self) -> Dict[str, Any]:
        """Sizes of the VQGAN: those of the released one with 1,024 codes, or the smallest."""
        return TINY_VQGAN if self.quick else {}

    def ours(
        self, precision: str, rivals: Sequence[str] = (), name: Optional[str] = None, **options: Any
    ) -> Contestant:
        """A training step of ours."""
        given = {"precision": precision, **options, "options": {**self.options, **options.get("options", {})}}
        return Contestant(name or f"ours {precision}", "bench.training:ours", given, tuple(rivals))

    def compiled(self, precision: str, rivals: Sequence[str], suffix: str = "", **options: Any) -> Contestant:
        """A training step of ours with compiled layers."""
        return self.ours(precision, rivals, f"ours {precision} compiled{suffix}", options={"compile": True}, **options)

    def theirs(
        self, precision: str, name: Optional[str] = None, rivals: Sequence[str] = (), **options: Any
    ) -> Contestant:
        """A training step of DALLE-pytorch."""
        given = {"precision": precision, **options}
        return Contestant(name or f"{THEIRS} {precision}", "bench.training:theirs", given, tuple(rivals))

    def case(self, name: str, unit: str, work: float, contestants: Sequence[Contestant], **rest: Any) -> Case:
        """A case without the contestants that this run leaves out."""
        if not self.with_peers:
            contestants = [contestant for contestant in contestants if not contestant.name.startswith(THEIRS)]
            rest.pop("comparison", None)
        return Case(name, unit, work, tuple(contestants), **rest)

    def training_case(self, name: str, setting: Setting, contestants: Sequence[Contestant], **rest: Any) -> Case:
        """A case of training steps."""
        given = {"close": LOSSES, "needs": {"arithmetic": training_arithmetic(setting)}, **rest}
        return self.case(name, "tokens/s", setting.tokens, contestants, **given)


def training(scope: Scope) -> List[Case]:
    """Training steps from image tokens, in float32 and under bfloat16 autocast."""
    return [
        scope.training_case(
            f"training step, {name}",
            make_setting(name),
            [
                scope.ours("fp32", (f"{THEIRS} fp32",), setting=name),
                scope.ours("bf16", (f"{THEIRS} fp32", f"{THEIRS} bf16"), setting=name),
                scope.compiled("bf16", (f"{THEIRS} fp32", f"{THEIRS} bf16"), setting=name),
                scope.theirs("fp32", setting=name),
                scope.theirs("bf16", setting=name),
            ],
            comparison=Contestant("comparison", "bench.training:compare", {"setting": name}),
        )
        for name in scope.settings("S", "L16")
    ]


def pictures(scope: Scope) -> List[Case]:
    """Training steps from pictures: with the VQGAN in the loop, and ours from codes that were made once."""
    return [
        pictures_case(scope, name, make_setting(name), precision, rivals)
        for name in scope.settings("L16")
        for precision, rivals in (("fp32", ("fp32",)), ("bf16", ("fp32", "bf16")))
    ]


def pictures_case(scope: Scope, name: str, setting: Setting, precision: str, rivals: Sequence[str]) -> Case:
    """Ours in one precision and theirs in some; `setting` differs from the one of the name by its batch."""
    given = {"setting": name, "vqgan": scope.vqgan, "changes": {"batch": setting.batch}}
    against = tuple(f"{THEIRS} {rival}" for rival in rivals)
    once, encoding = f"ours {precision}, encoded once", f"ours {precision}, encoding alone"
    contestants = [
        scope.ours(precision, against, pictures=True, **given),
        scope.ours(precision, against, once, **given),
        scope.compiled(precision, against, ", encoded once", **given),
        Contestant(encoding, "bench.training:our_encoding", {**given, "precision": precision}),
        *(scope.theirs(rival, pictures=True, **given) for rival in rivals),
    ]
    sums = {f"ours {precision}, encoded once for {EPOCHS} epochs": ({once: 1.0, encoding: 1 / EPOCHS}, against)}
    return scope.case(f"from pictures in {precision}, {name}", "samples/s", setting.batch, contestants, sums=sums)


def drawing(scope: Scope) -> List[Case]:
    """Drawing the image tokens of one text and of four; and of one with guidance, by the smaller model."""
    plain = [_drawing_case(scope, name, batch) for name in scope.settings("S", "L16") for batch in (1, 4)]
    return plain + [_drawing_case(scope, name, 1, GUIDANCE) for name in scope.settings("S")]


def _drawing_case(scope: Scope, name: str, batch: int, cond_scale: float = 1.0) -> Case:
    ours, theirs, rivals = "bench.drawing:ours", "bench.drawing:theirs", (SHIPPED, CACHED, MASKED)
    once: Dict[str, Any] = {"repetitions": 1, "warmup": 0}
    given = {"setting": name, "batch": batch, "greedy": True, "cond_scale": cond_scale}
    contestants = [
        Contestant("ours, greedy", ours, given, rivals),
        Contestant("ours, sampled", ours, {**given, "greedy": False}, rivals),
        Contestant("ours without cache", ours, {**given, "use_cache": False}, **once),
        Contestant(SHIPPED, theirs, {**given, "repaired": False, "steps": scope.shipped_steps}, **once),
        Contestant(CACHED, theirs, {**given, "repaired": True}, **{**once, "repetitions": 2}),
        Contestant(MASKED, theirs, {**given, "repaired": True, "masked": True}),
    ]
    needs = {"read": drawing_traffic(make_setting(name))}
    title = f"drawing {batch}{' with guidance' if cond_scale != 1 else ''}, {name}"
    return scope.case(title, "pictures/s", batch, contestants, equal=("tokens",), needs=needs)


def data(scope: Scope) -> List[Case]:
    """JPEG files to batches, one worker each."""
    given = {"folder": scope.folder, "image_size": 32 if scope.quick else 256, "batch": 8, "workers": 1}
    contestants = [
        Contestant("ours", "bench.pictures:ours", given, ("torchvision",)),
        Contestant("torchvision", "bench.pictures:theirs", given),
    ]
    count = picture_count(scope.quick)
    equal = ("pictures", "shape")
    return [scope.case("JPEG files to batches", "pictures/s", count, contestants, equal=equal, in_process=False)]


def picture_count(quick: bool) -> int:
    """JPEG files that the group `data` reads."""
    return 16 if quick else PICTURES


def attention(scope: Scope) -> List[Case]:
    """Training steps of every kind of attention, all layers alike, beside those of full attention."""
    return [_attention_case(scope, name, kind) for name in scope.settings("S", "L16") for kind in ATTENTION_TYPES[1:]]


def _attention_case(scope: Scope, name: str, kind: str) -> Case:
    contestants = []
    for other in (kind, "full"):
        given = {"setting": name, "changes": {"attn_types": [other]}}
        full = ("full",) if other != "full" else ()
        theirs = [f"{THEIRS}, {other}"] if other != "sparse" else []  # whose kernels need a GPU and DeepSpeed
        contestants.append(scope.ours("fp32", (*theirs, *(f"ours, {one}" for one in full)), f"ours, {other}", **given))
        contestants += [scope.theirs("fp32", one, [f"{THEIRS}, {rival}" for rival in full], **given) for one in theirs]
    return scope.training_case(f"attention {kind}, {name}", make_setting(name), contestants, close={}, needs={})


def curves(scope: Scope) -> List[Case]:
    """Training steps of S with one size changed: layers, width, batch, side of the grid of image tokens."""
    cases = []
    for size, values in CURVES.items():
        for value in (4,) if scope.quick else values:
            changes = {size: value, **({"heads": max(value // 32, 1)} if size == "dim" else {})}
            for name in scope.settings("S"):
                given = {"setting": name, "changes": changes}
                contestants = [scope.ours("fp32", (f"{THEIRS} fp32",), **given), scope.theirs("fp32", **given)]
                setting = make_setting(name, **changes)
                label, at = ("image tokens", value**2) if size == "grid" else (SIZES.get(size, size), value)
                title = f"{label} {at}, {name}"
                cases.append(scope.training_case(title, setting, contestants, curve=(label, at)))
    return cases


def start(scope: Scope) -> List[Case]:
    """From the shell to what one waits for."""
    first_step = ["--config", "unit_test", "--generated-data", "--max-steps", "1", "--log-steps", "1"]
    commands: Dict[str, Dict[str, Any]] = {
        "train.py --help": {"arguments": ["train.py", "--help"]},
        "generate.py --help": {"arguments": ["generate.py", "--help"]},
        "an unknown option": {"arguments": ["train.py", "--hiden-size", "8"], "fails": True},
        "the first step of unit_test": {
            "arguments": ["train.py", *first_step, "--output-dir", "OUT"], "until": "Epoch: ",
        },
    }  # fmt: skip
    return [
        scope.case(
            f"start, {name}", "runs/s", 1, [Contestant("ours", "bench.start:command", options)], in_process=False
        )
        for name, options in commands.items()
    ]


def machine(scope: Scope) -> List[Case]:
    """The best rates of matrix products and of memory."""
    side, size = (64, 2**16) if scope.quick else (8192, 2**32) if scope.device == "cuda" else (2048, 2**29)
    product, copying, reading = (f"bench.machine:{name}" for name in ("matrix_product", "copying", "reading"))
    cases = [
        scope.case(
            f"matrix product {precision}", "FLOP/s", 2.0 * side**3,
            [Contestant("torch", product, {"precision": precision, "side": side})],
        )
        for precision in ("fp32", "bf16")
    ]  # fmt: skip
    return [
        *cases,
        scope.case("copy", "B/s", 2.0 * size, [Contestant("torch", copying, {"size": size})]),
        scope.case("read", "B/s", 1.0 * size, [Contestant("torch", reading, {"size": size})]),
    ]
