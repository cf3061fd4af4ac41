"""All of llama.cpp's computing happens in one thread, whoever asks for it."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvloom.engine.llamacpp.compute import computed


def test_every_caller_is_served_by_the_same_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = {pool.submit(computed, threading.get_ident).result() for _ in range(20)}
    assert found == {computed(threading.get_ident)}
    assert threading.get_ident() not in found


def test_what_a_call_raises_is_raised_by_its_caller_and_the_next_call_runs() -> None:
    def fail() -> int:
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        computed(fail)
    assert computed(lambda: 7) == 7


def _in_a_child(answers: multiprocessing.SimpleQueue[int]) -> None:
    answers.put(computed(lambda: 8))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_thread_of_its_own() -> None:
    computed(lambda: 1)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_in_a_child, args=(answers,))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert answers.get() == 8
