"""Parallel work: the same answers in the same order, errors that are raised, and torch's threads restored."""

import threading
import time

import pytest
import torch

from zeropass.numerics.parallel import ahead, behind, each_core, in_turn, side_by_side


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_side_by_side_gives_what_in_turn_gives(threads: int, count: int) -> None:
    assert side_by_side(lambda x: x * x, range(count)) == in_turn(lambda x: x * x, range(count))


def test_each_task_has_one_thread_and_there_are_as_many_at_once_as_threads(threads: int) -> None:
    together = threading.Barrier(threads, timeout=30)

    def work(_: int) -> int:
        together.wait()
        return torch.get_num_threads()

    assert side_by_side(work, range(2 * threads)) == [1] * (2 * threads)


def test_threads_that_start_later_have_all_of_torchs_threads(threads: int) -> None:
    side_by_side(lambda x: x, range(4))
    counts: list[int] = []
    later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert counts == [threads]


def test_an_error_is_raised_and_waiting_work_is_not_started(threads: int) -> None:
    begun: list[int] = []

    def work(x: int) -> None:
        begun.append(x)
        time.sleep(0.01)
        raise OSError(x)

    with pytest.raises(OSError, match="0"):
        side_by_side(work, range(100))
    assert len(begun) < 100


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_computed_ahead_come_in_order(threads: int, count: int) -> None:
    assert list(ahead(lambda x: (x, torch.get_num_threads()), range(count))) == [(x, 1) for x in range(count)]


def test_only_the_next_result_is_computed_ahead() -> None:
    begun = [threading.Event() for _ in range(4)]

    def work(x: int) -> int:
        begun[x].set()
        return x

    for x in ahead(work, range(4)):
        assert all(event.wait(30) for event in begun[: x + 2])
        assert not any(event.is_set() for event in begun[x + 2 :])


def test_an_error_ahead_is_raised_in_its_turn() -> None:
    values: list[float] = []
    with pytest.raises(ZeroDivisionError):
        values.extend(ahead(lambda x: 1 / (1 - x), range(3)))
    assert values == [1.0]
    before, results = set(threading.enumerate()), ahead(lambda x: x, range(9))
    assert next(results) == 0
    results.close()  # a caller that stops early leaves no thread behind
    assert set(threading.enumerate()) <= before


def test_a_gpu_does_one_thing_at_a_time() -> None:
    assert each_core(torch.device("cuda")) is in_turn
    assert each_core(torch.device("cpu")) is side_by_side


def test_background_work_is_done_in_order_and_by_the_end() -> None:
    done: list[int] = []

    def slow(x: int) -> None:
        time.sleep(0.02)
        done.append(x)

    with behind() as take:
        for x in range(5):
            take(lambda x=x: slow(x))
            assert len(done) >= x  # at most one task waits
    assert done == [0, 1, 2, 3, 4]


def test_a_background_error_is_raised_with_the_next_task_or_at_the_end() -> None:
    def fail() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), behind() as take:
        take(fail)
        take(lambda: None)
        pytest.fail("the next piece was taken")
    with pytest.raises(OSError, match="no room"), behind() as take:
        take(fail)
