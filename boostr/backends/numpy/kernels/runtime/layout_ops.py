"""What launches and kernels of the ops must agree on; imports no numba, as `layout.py`."""

CHUNK = 512  # elements of a row that are one item of an elementwise kernel
OPTIM_CHUNK = 8192  # elements of a tensor that are one item of an optimizer's kernel
PENALTY_CHUNK = 4096  # logits of a row that are one item of `penalize`

# The optimizer's table of tensors: words of a row. A tensor's first item is the number of those of
# the tensors before it; what a kernel does not need is 0.
PARAM, GRAD, MEAN, SQUARE, LENGTH, FIRST_ITEM = range(6)
TENSOR_WORDS = 6

# Parameters of the attention kernels. Strides are in elements for q, in bytes for keys and values.
# CU_K is 0 for a paged cache, which has TABLE [B, COLUMNS], KV_LENS [B], BLOCK_SIZE and BLOCKS
# instead; ALIBI and SINKS may be 0. Packed rows are known by number: KEYS and VALUES are then 0,
# their strides 1, and the planes are at the last four.
(Q, Q_STRIDE, KEYS, K_STRIDE, VALUES, V_STRIDE, OUT, LSE, CU_Q, CU_K, TABLE, KV_LENS, COLUMNS,
 BLOCK_SIZE, BLOCKS, SEGMENTS, TOKENS, HEADS, KV_HEADS, WIDTH, V_WIDTH, SCALE, SOFTCAP, LEFT, RIGHT,
 BOTTOM_RIGHT, ALIBI, SINKS, SPLITS, K_CODES, K_SCALES, V_CODES, V_SCALES) = range(33)  # fmt: skip
ATTENTION_PARAMS = 33
# Further ones of its gradient: gradients of out, lse, q (as often as a segment may have parts of
# PART keys), k and v.
G_OUT, G_LSE, DQ, DK, DV, KEY_TOKENS, PART = range(ATTENTION_PARAMS, 40)
BACKWARD_PARAMS = 40
MAX_HEADS = 256  # query heads that the decode kernel keeps state for
VECTORS = 3  # vectors of query rows in a block of the prefill kernel
MAX_WIDTH = 512  # of a head, in the prefill kernel
