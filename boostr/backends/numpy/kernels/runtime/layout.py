"""Where things lie in the thread pool's shared words; read by `threads.py` and by `pool.py`.

A call is a record of RECORD int64 words. The state's hot words are 128 bytes apart, so that no two
of them share a cache line (x86 fetches lines in pairs, Apple's lines have 128 bytes).
"""

# one call
RECORD = 8
FUNCTION, PARAMS, ITEMS, GRAIN, BARRIER, SHARE, TARGET = range(7)  # the last two: by `run`

# the state
EPOCH = 0  # number of the current run; -1 tells the workers to leave
OPEN = 16  # the epoch while its run may be joined, else 0
ACTIVE = 32  # workers inside of a run
DONE = 48  # items finished in this run
CURSOR = 64  # where a worker that joins late begins
PARKED = 80  # workers that sleep or are about to
CALLS, COUNT, YIELD, WORKERS, PATIENCE = 96, 97, 98, 99, 100
TAKEN = 101  # address of the items taken of each share of each call
WORKER = 112  # from here on WORKER_WORDS for each worker
WORKER_WORDS = 16
ASLEEP, WOKEN, SEEN = 0, 1, 2

# Where kernels find a weight: for each plane that its form has the address and the bytes from one
# row to the next (see `boostr.quant.scheme`; floats are `codes` too).
CODES, HIGH, SCALES, SUPERS, OFFSETS, FLOORS, ZEROS = range(0, 14, 2)
PLANES = {
    "codes": CODES, "high": HIGH, "scales": SCALES, "supers": SUPERS,
    "offsets": OFFSETS, "floors": FLOORS, "zeros": ZEROS,
}  # fmt: skip
PLANE_WORDS = 14  # kernels' own parameters follow

# the parameters of the linear kernels; strides of x, y and the residual in elements, addresses of
# things that are absent 0
X, LDX, Y, LDY, M, N, K, BIAS, RESIDUAL, LDR, PACKED, TILES_PER_ITEM, FIRST_INPUT = range(
    PLANE_WORDS, 27
)
LINEAR_PARAMS = 27

# the parameters of `embedding.gather` and of `quant.dequantize`
IDS, TABLE_ROWS, OUT, WIDTH = range(PLANE_WORDS, 18)
TABLE_PARAMS = 18


# the parameters of `repack`: GGUF blocks, bytes from one row of them to the next, blocks in a row
BLOCKS, BLOCK_ROW_BYTES, BLOCK_COUNT = range(PLANE_WORDS, 17)
REPACK_PARAMS = 17


def digit_record(lanes: int, digits: int) -> int:
    """Bytes of one step of split x, LANES * 8 elements, for `gemv_digits.gemv`."""
    return (2 * digit_bytes(digits) + 5) * 4 * lanes


def digit_bytes(digits: int) -> int:
    """Bytes of an element of split x: one digit has two."""
    return max(digits, 2)


def float_block(rows: int) -> int:
    """Bytes of a block of 32 elements of a tile of so many rows of x, for `gemm`."""
    return rows * 128


def digit_block(rows: int) -> int:
    """The same for `gemm_digits`."""
    return rows * (64 + 20)


def word_block(rows: int) -> int:
    """The same for `gemm_words`."""
    return rows * (64 + 16)


# packed x of `int8_gemm`: a head of scales and, from INT8_OFFSETS on, of offsets; then words
INT8_OFFSETS, INT8_HEAD = 64, 128


def int8_group(route: str) -> int:
    """Elements of int8 x in a word of 32 bits; see `int8_gemm`."""
    return 2 if route == "pmaddwd" else 4


def int8_tile(length: int, rows: int, span: int, group: int) -> int:
    """Bytes of a packed tile of `rows` rows of `length` elements, with room for a vector's tail.

    `span` is how many elements a vector of words has, `group` how many a word has.
    """
    return INT8_HEAD + (length + span - 1) // span * (span // group) * rows * 4 + 64
