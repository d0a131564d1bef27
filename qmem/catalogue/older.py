"""What the step of older libraries does otherwise: facts that nobody sets, because they are the libraries' own.

Owns their names, their meaning and where each was read; which versions they hold for stands in ``stacks.json``.
"""

import msgspec


class Older(msgspec.Struct, frozen=True):
    """Where the program of older libraries differs from the newest one, beside the facts that can be set.

    Attributes:
        repeats_heads: sdpa gets keys and values at all heads, and queries, keys and values as contiguous copies
            (transformers 4.48.1 ``integrations/sdpa_attention.py``).
        shifts_logits: the loss copies the logits without the last position; the newest pads the labels instead
            (transformers 4.48.1 ``loss/loss_utils.py``).
        always_dequantizes: no fused 4-bit product; the absmax is shifted in place and dies with the dequantizing
            (bitsandbytes 0.43.3 ``autograd/_functions.py`` ``MatMul4Bit``, ``functional.py`` ``dequantize_4bit``).
        computes_in_input_dtype: a 4-bit linear computes in the dtype of its first input, unless that is fp16
            (bitsandbytes 0.43.3 ``nn/modules.py`` ``Linear4bit.set_compute_type``).
        rotates_by_cublas: the product of the rotary frequencies goes through cuBLAS (torch 2.4.1); the newest has a
            kernel of its own for a single column.
        slices_whole: ``x[:]`` is a slice like any other, whose backward makes zeros (torch 2.4.1); the newest hands
            out an alias (``TensorIndexing.h``, ``applySlice``).
        centres_in_place: quantizing takes the mean off the absmax in place (bitsandbytes 0.43.3 ``quantize_4bit``).
        shares_nested_map: one table serves the nested states of all weights (``quantize_blockwise``).
        one_rotary_buffer: ``original_inv_freq`` is no buffer (transformers 4.48.1).
        looks_at_mask_once: a mask that came with the batch is compared with 1 and dropped; packed sequences are not
            looked for (transformers 4.48.1 ``modeling_attn_mask_utils.py`` ``_ignore_causal_mask_sdpa``).
        counts_on_host: the Trainer reads the number of labelled tokens from the device, of all labels, and keeps no
            tensor of it (transformers 4.48.1 ``trainer.py`` ``get_batch_samples``).
        flash_state_on_host: the flash kernel's random state is on the host without dropout (torch 2.4.1
            ``flash_api.cpp``).
        lt_workspace: a product with a bias has a workspace of cuBLASLt (torch 2.4.1 ``CUDABlas.cpp``).
        adapters_follow_storage: peft makes adapters in the dtype that a packed weight is stored as, where that is a
            floating one, else in fp32 (peft 0.13.2 ``_move_adapter_to_device_of_base_layer``).
        flash_first: cuDNN's attention is never taken by default (torch 2.4.1 ``sdp_utils.cpp``).
        flash_unsplit: the flash forward never splits the keys (torch 2.4.1 ``flash_api.cpp``).
        input_grads_for_reentrant: the k-bit preparation lets the input require a gradient for reentrant checkpointing
            alone (peft 0.13.2); the newest transformers does it whenever checkpointing is enabled.
        keeps_cache: the k-bit preparation does not empty the allocator's cache (peft 0.13.2 ``utils/other.py``).
        decays_most_norms: the Trainer knows norms by their class alone, and of the families that are walked only those
            of Llama and GPTBigCode (transformers 4.48.1 ``trainer.py`` ``get_decay_parameter_names``,
            ``ALL_LAYERNORM_LAYERS``).
        keeps_norm: the Trainer holds the last step's gradient norm while it takes the next (transformers 4.48.1
            ``trainer.py`` ``_inner_training_loop``).
        state_block: elements that share one absmax of an 8-bit optimizer state, where not as in the newest
            (bitsandbytes 0.43.3 ``optim/optimizer.py``).
    """

    repeats_heads: bool = False
    shifts_logits: bool = False
    always_dequantizes: bool = False
    computes_in_input_dtype: bool = False
    rotates_by_cublas: bool = False
    slices_whole: bool = False
    centres_in_place: bool = False
    shares_nested_map: bool = False
    one_rotary_buffer: bool = False
    looks_at_mask_once: bool = False
    counts_on_host: bool = False
    flash_state_on_host: bool = False
    lt_workspace: bool = False
    adapters_follow_storage: bool = False
    flash_first: bool = False
    flash_unsplit: bool = False
    input_grads_for_reentrant: bool = False
    keeps_cache: bool = False
    decays_most_norms: bool = False
    keeps_norm: bool = False
    state_block: int | None = None
