"""The buffers of torch's reduction kernel: as recorded from torch on simulated cards, and what must hold for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.estimator.paper import Gpu
from qmem.estimator.reductions import Buffers, column_sum_buffers, row_sum_buffers

A100 = Gpu((8, 0), 108)


@pytest.mark.parametrize(
    ("rows", "columns", "n_bytes"),
    [(2048, 4096, 67_108_864), (16384, 128, 16_777_216), (8192, 128, 8_388_608), (1024, 1024, 8_388_608)],
)
def test_summing_columns_stages_what_torch_staged(rows, columns, n_bytes):
    buffers = column_sum_buffers(rows, columns, A100)
    assert buffers is not None
    assert 4 * buffers.n_partial == n_bytes


def test_few_rows_are_summed_in_one_go():
    assert column_sum_buffers(512, 1024, A100) is None


def test_a_mean_of_everything_stages_what_torch_staged():
    assert row_sum_buffers(1, 409_600, A100) == Buffers(50, 1)
    assert row_sum_buffers(1, 1_392_640, A100) == Buffers(170, 1)
    assert row_sum_buffers(1, 81_920, A100) is None


@given(rows=st.integers(1, 1 << 16), columns=st.integers(1, 1 << 15), sm_count=st.integers(1, 200))
def test_no_more_partial_results_than_a_thread_for_each_sixteen_elements(rows, columns, sm_count):
    buffers = column_sum_buffers(rows, columns, Gpu((8, 0), sm_count))
    if buffers is not None:
        vectors = -(-columns // 128) * 128
        assert 2 * columns <= buffers.n_partial <= rows * vectors * 4
        assert 1 <= buffers.n_semaphores <= columns
