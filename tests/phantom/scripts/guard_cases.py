"""Small programs under the readback guard, each watched by itself; prints one line of JSON: case to what happened."""

import json
import sys

from qmem import phantom
from qmem.catalogue import find_gpu

phantom.load(find_gpu("a100-80"))

import torch  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from qmem.phantom import guard  # noqa: E402

IGNORED = -100
TOKENS = 512


def activation():
    return torch.randn(2, TOKENS, 16, device="cuda", requires_grad=True)


def labels(share_ignored):
    values = torch.arange(2 * TOKENS).view(2, TOKENS)
    values[:, : int(TOKENS * share_ignored)] = IGNORED
    return values.to("cuda")


# ---- what must taint ----


def nonzero_of_an_activation(_):
    return (activation() > 0).nonzero().shape[0]


def unique_of_an_activation(_):
    activation().argmax(-1).unique()


def indexing_by_a_computed_mask(_):
    hidden = activation()
    return hidden[hidden[..., 0] > 0].shape[0]


def item_of_an_activation_in_an_if(_):
    hidden = activation()
    if hidden.mean().item() > 0:
        hidden = hidden * 2


def tolist_of_counts_on_the_device(_):
    torch.bincount(activation().argmax(-1).flatten(), minlength=16).tolist()


def random_ids_made_on_the_device(_):
    ids = torch.randint(0, 100, (64,), device="cuda")
    ids[ids > 50].clone()


def known_values_after_an_address_was_handed_out(_):
    mask = torch.ones(8, dtype=torch.bool).cuda()
    mask.data_ptr()
    return bool(mask.all())


def known_values_overwritten_by_unknown_ones(_):
    mask = torch.ones(64, dtype=torch.bool).cuda()
    mask[:] = torch.randn(64, device="cuda") > 0
    return bool(mask.all())


def a_view_of_known_values_overwritten_by_unknown_ones(_):
    mask = torch.ones(64, dtype=torch.bool).cuda()
    mask[32:].copy_(torch.randn(32, device="cuda") > 0)
    return bool(mask[:32].all())


def item_of_an_activation_while_a_checkpoint_recomputes(_):
    weight = torch.randn(4, 4, device="cuda", requires_grad=True)

    def layer(x):
        y = x @ weight
        if torch._C._current_graph_task_id() != -1:  # in backward
            y.sum().item()
        return y @ weight

    checkpoint(layer, torch.randn(4, 4, device="cuda"), use_reentrant=False).sum().backward()


# ---- what must be answered by true values ----


def masks_of_ones_of_any_batch(_):
    return [bool(torch.all(torch.ones(batch, TOKENS, dtype=torch.int64).cuda() == 1)) for batch in (1, 2, 4)]


def padded_mask(_):
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, -100:] = 0
    on_device = mask.to("cuda")
    return [bool((on_device == 1).all()), bool((on_device[0] == 1).all()), on_device.sum(-1).tolist()]


def positions_of_one_sequence_and_of_two(_):
    packed = torch.cat([torch.arange(300), torch.arange(TOKENS - 300)]).cuda()
    return [is_one_sequence(torch.arange(TOKENS, device="cuda")[None].expand(batch, -1)) for batch in (1, 2)] + [
        is_one_sequence(packed[None])
    ]


def is_one_sequence(positions):
    jumps = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1) != 1
    return bool((jumps.cumsum(-1)[:, -1] == 0).all())


def labelled_positions(_):
    counts = []
    for share in (0.0, 0.5, 1.0):
        hidden, wanted = activation(), labels(share)
        scored = hidden[wanted != IGNORED]
        scored.square().sum().backward()
        counts.append([scored.shape[0], list(hidden.grad.shape), int((wanted != IGNORED).sum())])
    return counts


def selections(_):
    wanted = labels(0.5)
    kept = wanted != IGNORED
    return {
        "nonzero": kept.nonzero().shape[0],
        "where": torch.where(kept)[1][0].item(),
        "masked_select": torch.masked_select(wanted, kept)[:2].tolist(),
        "unique": wanted.unique().shape[0],
        "bincount": torch.bincount(kept.long().flatten()).tolist(),
        "repeat_interleave": torch.repeat_interleave(kept.sum(-1)).shape[0],
        "strided": wanted[:, 1::2].cpu()[0, -1].item(),
        "equal": torch.equal(kept, kept),
        "contains": IGNORED in wanted,
    }


def written_in_place(_):
    ids = torch.zeros(16, dtype=torch.int64, device="cuda")
    ids[4:8] = 1
    ids.add_(1)
    view = ids.view(4, 4)
    view[0] = torch.arange(4, device="cuda")
    ids[0] += 10
    return ids.tolist()


def a_large_mask(_):
    ones = torch.ones(8, 65536, dtype=torch.int64).cuda()
    return [ones.sum().item(), ones.cpu().sum().item()]


def true_masks_while_a_checkpoint_recomputes(_):
    weight = torch.randn(4, 4, device="cuda", requires_grad=True)

    def layer(x):
        mask = torch.ones(4, dtype=torch.bool, device="cuda")
        return x @ weight if mask.all() else x

    for reentrant in (False, True):
        x = torch.randn(4, 4, device="cuda", requires_grad=True)
        checkpoint(layer, x, use_reentrant=reentrant).sum().backward()


def a_mask_function_mapped_over_positions(_):
    positions = torch.arange(TOKENS).cuda()
    visible = torch.vmap(torch.vmap(lambda query, key: query >= key, (None, 0)), (0, None))(positions, positions)
    return list(visible.shape)


def a_declared_loss(verdict):
    loss = activation().sum().detach()
    verdict.declare(loss, "loss", 2.5)
    total = torch.zeros((), device="cuda") + loss
    return [total.item(), bool(torch.isnan(loss)), bool(torch.isinf(loss))]


def a_declared_block(_):
    with guard.known_read("gradient norm"):
        activation().sum().item()


def a_named_assumption(verdict):
    experts = torch.empty(TOKENS, dtype=torch.int64, device="cuda")
    verdict.assume(experts, torch.arange(TOKENS) % 8, "balanced routing")
    return (experts == 3).nonzero().shape[0]


def zeros_by_assumption(verdict):
    outliers = activation().abs() >= 6.0
    with verdict.assuming_zeros("no outliers"):
        return [bool(outliers.any()), outliers.nonzero().shape[0]]


def nothing_but_products(_):
    (activation() @ torch.randn(16, 16, device="cuda")).sum().backward()


CASES = (
    nonzero_of_an_activation,
    unique_of_an_activation,
    indexing_by_a_computed_mask,
    item_of_an_activation_in_an_if,
    tolist_of_counts_on_the_device,
    random_ids_made_on_the_device,
    known_values_after_an_address_was_handed_out,
    known_values_overwritten_by_unknown_ones,
    a_view_of_known_values_overwritten_by_unknown_ones,
    item_of_an_activation_while_a_checkpoint_recomputes,
    masks_of_ones_of_any_batch,
    padded_mask,
    positions_of_one_sequence_and_of_two,
    labelled_positions,
    selections,
    written_in_place,
    a_large_mask,
    true_masks_while_a_checkpoint_recomputes,
    a_mask_function_mapped_over_positions,
    a_declared_loss,
    a_declared_block,
    a_named_assumption,
    zeros_by_assumption,
    nothing_but_products,
)


def outcome(case):
    with guard.watching() as verdict:
        result = case(verdict)
    return {"state": verdict.state, "result": result, "reads": [read._asdict() for read in verdict.reads]}


sys.stdout.write(json.dumps({case.__name__: outcome(case) for case in CASES}) + "\n")
