# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Linear algebra in the background takes one core, and gives the others back."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from vllm_vectorq.one_thread import one_blas_thread


def blas_threads() -> set[int]:
    assert np.ones((2, 2)).sum() == 4.0  # numpy brings a BLAS
    return {
        lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"
    }


def test_blas_has_one_thread_meanwhile_and_its_own_number_afterwards() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        assert before
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == before


def test_number_of_threads_comes_back_after_an_error() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        with pytest.raises(ZeroDivisionError), one_blas_thread():
            raise ZeroDivisionError
        assert blas_threads() == before


def test_overlapping_fits_do_not_leave_one_thread_behind() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()

        def fit() -> None:
            for _ in range(50):
                with one_blas_thread():
                    pass

        fits = [threading.Thread(target=fit) for _ in range(4)]
        for thread in fits:
            thread.start()
        for thread in fits:
            thread.join()
        assert blas_threads() == before
