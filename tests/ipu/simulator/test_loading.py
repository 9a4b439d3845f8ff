"""Loading ahead in a process of its own: what arrives, when it is loaded, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ipu.simulator import arguments
from ipu.simulator.dataloader import AsynchronousDataAccessor
from ipu.simulator.enums import SharingStrategy
from ipu.simulator.poptorch_core import Error

ROOT = Path(__file__).resolve().parents[3]


class Elements:
    """A dataset that counts, in memory that a fork shares, how often it was begun and how many elements it gave."""

    def __init__(self, elements: Sequence[Any]) -> None:
        self.elements = elements
        self.counts = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.elements)

    def __iter__(self) -> Iterator[Any]:
        self.counts[0] += 1
        for element in self.elements:
            self.counts[1] += 1
            yield element() if callable(element) else element


def numbers(count: int, rows: int = 2) -> List[Tensor]:
    return [torch.full((rows, 3), float(number)) for number in range(count)]


@pytest.fixture
def accessor() -> Iterator[Callable[..., AsynchronousDataAccessor]]:
    made: List[AsynchronousDataAccessor] = []

    def make(dataset: Any, **options: Any) -> AsynchronousDataAccessor:
        made.append(AsynchronousDataAccessor(dataset, **{"sharing_strategy": SharingStrategy.Fork, **options}))
        return made[-1]

    yield make
    for one in made:
        one.terminate()


def firsts(accessor: Any) -> List[float]:
    return [float(element.flatten()[0]) for element in accessor]


def becomes(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def process_of(accessor: AsynchronousDataAccessor) -> int:
    assert accessor._ahead is not None
    return int(accessor._ahead._process.pid)


@pytest.mark.parametrize("strategy", list(SharingStrategy))
def test_every_strategy_delivers_every_element_in_order_in_every_epoch(
    accessor: Any, strategy: SharingStrategy
) -> None:
    loader = torch.utils.data.DataLoader(TensorDataset(torch.arange(10.0)), batch_size=2, num_workers=1)
    ahead = accessor(loader, sharing_strategy=strategy)
    for _ in range(3):
        assert [element[0].tolist() for element in ahead] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


class Pair:
    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right


class PairParser(arguments.ICustomArgParser):
    def yieldTensors(self, struct: Any) -> Iterator[Tensor]:
        yield from (struct.left, struct.right)

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[Tensor]) -> Any:
        return Pair(next(tensor_iterator), next(tensor_iterator))


def test_elements_keep_their_structure_types_and_values(accessor: Any) -> None:
    arguments.registerCustomArgParser(Pair, PairParser())
    try:
        half = torch.rand(2, 3).half()
        element = {"a": (half, [torch.tensor(True)]), "b": Pair(torch.tensor([2**40]), torch.empty(2, 0))}
        (got,) = accessor(Elements([element]))
    finally:
        arguments.registerCustomArgParser(Pair, None)
    assert list(got) == ["a", "b"]
    assert type(got["a"]) is tuple and type(got["a"][1]) is list and type(got["b"]) is Pair
    assert got["a"][0].dtype == torch.float16 and torch.equal(got["a"][0], half)
    assert got["a"][1][0].shape == () and bool(got["a"][1][0])
    assert got["b"].left.tolist() == [2**40] and got["b"].right.shape == (2, 0)


def test_elements_lie_in_as_many_buffers_as_asked_for_and_are_overwritten(accessor: Any) -> None:
    ahead = accessor(Elements(numbers(9)), buffer_size=2)
    kept = list(ahead)
    assert len({element.data_ptr() for element in kept}) == 2
    assert firsts(kept) != [float(number) for number in range(9)]


def test_the_element_in_hand_is_never_overwritten(accessor: Any) -> None:
    dataset = Elements(numbers(20))
    ahead = iter(accessor(dataset, buffer_size=3))
    for number in range(5):
        element = next(ahead)
        loaded = number + 4  # in hand, two more in the ring, and one that waits for room
        assert becomes(lambda loaded=loaded: int(dataset.counts[1]) == loaded)  # type: ignore[misc]
        time.sleep(0.02)
        assert int(dataset.counts[1]) == loaded
        assert element.unique().tolist() == [number]


@pytest.mark.parametrize("early, loaded", [(True, 4), (False, 1)])
def test_only_an_early_preload_loads_before_the_first_iterator(accessor: Any, early: bool, loaded: int) -> None:
    dataset = Elements(numbers(9))
    accessor(dataset, early_preload=early)
    assert becomes(lambda: int(dataset.counts[1]) == loaded)
    time.sleep(0.1)
    assert int(dataset.counts[1]) == loaded


@pytest.mark.parametrize("indefinitely, begun", [(True, 2), (False, 1)])
def test_only_indefinite_loading_begins_the_next_epoch_by_itself(accessor: Any, indefinitely: bool, begun: int) -> None:
    dataset = Elements(numbers(5))
    ahead = accessor(dataset, load_indefinitely=indefinitely)
    assert firsts(ahead) == [0, 1, 2, 3, 4]
    assert becomes(lambda: int(dataset.counts[0]) == begun)
    time.sleep(0.1)
    assert int(dataset.counts[0]) == begun
    assert firsts(ahead) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("indefinitely", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_broken_off_epoch_leaves_nothing_behind(accessor: Any, indefinitely: bool, count: int) -> None:
    ahead = accessor(Elements(numbers(5)), load_indefinitely=indefinitely)
    for pause in (0, 0.05, 0):
        iterator = iter(ahead)
        assert [float(next(iterator)[0, 0]) for _ in range(count)] == list(range(count))
        time.sleep(pause)
    assert firsts(ahead) == [0, 1, 2, 3, 4]
    assert firsts(ahead) == [0, 1, 2, 3, 4]


def test_an_iterator_that_nothing_was_taken_from_is_not_begun_anew(accessor: Any) -> None:
    dataset = Elements(numbers(5))
    ahead = accessor(dataset, load_indefinitely=False)
    for _ in range(3):
        iter(ahead)
    assert firsts(ahead) == [0, 1, 2, 3, 4]
    assert int(dataset.counts[0]) == 1


def test_an_epoch_that_is_over_stays_over_until_a_new_iterator(accessor: Any) -> None:
    ahead = accessor(Elements(numbers(2)))
    firsts(ahead)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(ahead)
    assert firsts(ahead) == [0, 1]


def test_epochs_shorter_than_the_ring_do_not_mix(accessor: Any) -> None:
    ahead = accessor(Elements(numbers(1)), buffer_size=5, early_preload=True)
    time.sleep(0.1)
    assert [firsts(ahead) for _ in range(20)] == [[0.0]] * 20


def test_an_exhausted_dataset_gives_empty_epochs_without_spinning(accessor: Any) -> None:
    dataset = Elements([])
    generator = iter(numbers(3))

    class Once:
        def __iter__(self) -> Iterator[Tensor]:
            dataset.counts[0] += 1
            return generator

    ahead = accessor(Once())
    assert [firsts(ahead) for _ in range(3)] == [[0, 1, 2], [], []]
    time.sleep(0.05)
    assert int(dataset.counts[0]) == 3


def test_batches_are_put_together_across_the_datasets_own(accessor: Any) -> None:
    dataset = Elements([torch.arange(start, start + 3) for start in range(0, 12, 3)])
    ahead = accessor(dataset, rebatched_size=5)
    for _ in range(2):
        assert [element.tolist() for element in ahead] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert len(ahead) == 2


def test_a_batch_much_larger_than_asked_for_is_cut(accessor: Any) -> None:
    ahead = accessor(Elements([torch.arange(11)]), rebatched_size=2)
    assert [element.tolist() for element in ahead] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_the_length_is_the_datasets(accessor: Any) -> None:
    assert len(accessor(Elements(numbers(5)))) == 5


def broken() -> Tensor:
    raise KeyError("no such picture")


def die() -> Tensor:
    os._exit(3)


@pytest.mark.parametrize(
    "elements, message",
    [
        ([], "dataset is empty"),
        ([broken], "no such picture"),
        ([die], "exit code 3"),
        ([(torch.ones(1), "a name")], "an element holds str"),
        ([()], "an element holds nothing"),
    ],
)
def test_a_process_that_cannot_begin_is_an_error_that_says_why(accessor: Any, elements: Any, message: str) -> None:
    with pytest.raises(Error, match=f"(?s)worker thread failed to start.*{message}"):
        accessor(Elements(elements))


def test_a_dataset_that_cannot_be_pickled_is_an_error_that_names_the_strategy_without(accessor: Any) -> None:
    with pytest.raises(Error, match="worker thread failed to start.*SharingStrategy.Fork"):
        accessor(Elements([lambda: torch.ones(1)]), sharing_strategy=SharingStrategy.ForkServer)


@pytest.mark.parametrize(
    "last, message",
    [
        (broken, "no such picture"),
        (die, "exit code 3"),
        (torch.zeros(1, 3), "all have to be alike"),
        (torch.zeros(2, 3).long(), "all have to be alike"),
    ],
)
def test_a_process_that_fails_later_is_an_error_after_what_it_loaded(accessor: Any, last: Any, message: str) -> None:
    ahead = accessor(Elements([*numbers(2), last]))
    iterator = iter(ahead)
    assert [float(next(iterator)[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(Error, match=f"(?s)worker of the AsynchronousDataAccessor.*{message}"):
        next(iterator)
    with pytest.raises(Error):
        next(iterator)


def test_a_killed_process_is_an_error_at_once(accessor: Any) -> None:
    ahead = accessor(Elements([*numbers(1), lambda: time.sleep(60)]))
    iterator = iter(ahead)
    next(iterator)
    os.kill(process_of(ahead), signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(Error, match="died"):
        next(iterator)
    assert time.monotonic() - begun < 3


def test_a_terminated_accessor_has_no_process_and_says_so(accessor: Any) -> None:
    ahead = accessor(Elements(numbers(3)))
    process = process_of(ahead)
    ahead.terminate()
    assert not is_alive(process)
    ahead.terminate()
    with pytest.raises(Error, match="terminated"):
        iter(ahead)


def test_termination_does_not_wait_for_a_busy_dataset(accessor: Any) -> None:
    ahead = accessor(Elements([*numbers(1), lambda: time.sleep(60)]))
    next(iter(ahead))
    begun = time.monotonic()
    ahead.terminate()
    assert time.monotonic() - begun < 10


def test_a_deleted_accessor_ends_its_process() -> None:
    ahead = AsynchronousDataAccessor(Elements(numbers(3)), sharing_strategy=SharingStrategy.Fork)
    process = process_of(ahead)
    del ahead
    assert becomes(lambda: not is_alive(process))


def test_a_fork_of_the_program_does_not_end_the_process(accessor: Any) -> None:
    ahead = accessor(Elements(numbers(5)))
    child = os.fork()
    if child == 0:
        ahead.terminate()
        os._exit(0)
    os.waitpid(child, 0)
    assert firsts(ahead) == [0, 1, 2, 3, 4]


PROGRAM = """
    import sys, time, torch
    from torch.utils.data import DataLoader, TensorDataset
    from ipu.simulator.dataloader import AsynchronousDataAccessor
    from ipu.simulator.enums import SharingStrategy

    if __name__ == "__main__":
        loader = DataLoader(TensorDataset(torch.arange(100.0)), batch_size=2, num_workers=1)
        accessor = AsynchronousDataAccessor(loader, sharing_strategy=SharingStrategy[sys.argv[1]])
        next(iter(accessor))
        print(accessor._ahead._process.pid, flush=True)
        if sys.argv[2] == "stay":
            time.sleep(60)
"""


@pytest.mark.parametrize("strategy", ["Fork", "ForkServer"])
@pytest.mark.parametrize("how", ["stay", "leave"])
def test_no_process_outlives_the_program(tmp_path: Path, strategy: str, how: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(
        [sys.executable, str(script), strategy, how], env=environment, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert program.stdout is not None
    process = int(program.stdout.readline())
    if how == "stay":
        assert is_alive(process)
        program.kill()
    assert program.wait(timeout=20) == (-signal.SIGKILL if how == "stay" else 0)
    program.stdout.close()
    assert becomes(lambda: not is_alive(process), 20)
