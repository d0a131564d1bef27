"""torch's choice of attention kernel, as recorded from torch itself on simulated cards."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.estimator.sdpa_choice import efficient_backward_workspace_bytes, flash_split_bytes, sdpa_backend

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sdpa_choice.json").read_text())
CAPABILITIES = sorted({tuple(row[0]) for row in GOLDEN["choices"]})


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_attention_kernel_is_the_one_torch_chose(capability):
    for recorded, dtype, has_mask, needs_grad, dropout, letters in GOLDEN["choices"]:
        if tuple(recorded) == capability:
            chosen = [
                sdpa_backend(capability, dtype, d, has_mask=has_mask, needs_grad=needs_grad, dropout=dropout)[0]
                for d in GOLDEN["head_dims"]
            ]
            assert "".join(chosen) == letters, (dtype, has_mask, needs_grad, dropout)


def test_the_recording_has_every_kernel():
    assert set("".join(row[-1] for row in GOLDEN["choices"])) == set("fcem")


def test_common_cards_run_what_their_owners_expect():
    assert sdpa_backend((8, 0), "bf16", 128) == "flash"
    assert sdpa_backend((8, 0), "bf16", 128, has_mask=True) == "efficient"
    assert sdpa_backend((8, 0), "fp32", 128) == "efficient"
    assert sdpa_backend((9, 0), "bf16", 128) == "cudnn"
    assert sdpa_backend((9, 0), "bf16", 128, has_mask=True) == "cudnn"
    assert sdpa_backend((9, 0), "bf16", 128, seq=1) == "flash"
    assert sdpa_backend((7, 5), "bf16", 128) == "math"
    assert sdpa_backend((7, 5), "fp16", 128) == "efficient"


def test_the_workspace_of_the_efficient_backward_is_what_torch_allocated():
    said = [
        efficient_backward_workspace_bytes(tuple(capability), dtype, 1, heads, seq, head_dim)
        for capability, dtype, heads, seq, head_dim, _ in GOLDEN["workspaces"]
    ]
    assert said == [n_bytes for *_, n_bytes in GOLDEN["workspaces"]]


def test_the_buffers_of_a_split_flash_forward_are_what_torch_allocated():
    said = [flash_split_bytes(*shape) for *shape, _ in GOLDEN["split_buffers"]]
    assert said == [n_bytes and tuple(n_bytes) for *_, n_bytes in GOLDEN["split_buffers"]]
    assert None in said
    assert any(said)


@given(
    sm_count=st.integers(1, 200), batch=st.integers(1, 8), heads=st.integers(1, 64),
    seq=st.integers(1, 8192), head_dim=st.integers(1, 256),
)  # fmt: skip
def test_a_card_whose_row_blocks_fill_it_does_not_split(sm_count, batch, heads, seq, head_dim):
    split = flash_split_bytes(sm_count, batch, heads, seq, head_dim)
    if batch * heads * (seq // 64) >= 2 * sm_count:
        assert split is None
    elif split is not None:
        statistics, outputs = split
        assert statistics >= 2 * batch * heads * seq * 4
        assert outputs >= statistics * head_dim
