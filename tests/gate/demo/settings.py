"""What the training is like.  A line of this file is what a pull request changes."""

CHECKPOINTING = True
RANK = 8
HEAD_DTYPE = "bfloat16"
FUSED_LOSS = True
PAGED_OPTIMIZER = True
KEEP_HISTORY = False

LAYERS = 4
TOKENS = (2, 1024)
STEPS = 5
