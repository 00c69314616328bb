"""What GGUF's blocks mean: plain float64 numpy that imports nothing of ours (see `oracles.py`)."""

import gguf
import numpy as np

F64 = np.float64


def _halves(blocks, at):
    """The f16 at byte `at` of each block, float64 [N, n, 1]."""
    return blocks[..., at : at + 2].copy().view(np.float16).astype(F64)


def _nibbles(b):
    """Byte i holds element i in its low nibble and element i + 16 in its high one."""
    return np.concatenate([b & 15, b >> 4], axis=-1)


def q8_0(raw):
    """GGML Q8_0, uint8 [N, 34 n] -> [N, 32 n]: f16 d, int8 q[32]; w = d q. ggml-common.h"""
    b = np.asarray(raw).reshape(len(raw), -1, 34)
    return (_halves(b, 0) * b[..., 2:].copy().view(np.int8)).reshape(len(raw), -1)


def q4_0(raw):
    """GGML Q4_0, uint8 [N, 18 n] -> [N, 32 n]: f16 d, 16 bytes; w = d (q - 8). ggml-common.h"""
    b = np.asarray(raw).reshape(len(raw), -1, 18)
    return (_halves(b, 0) * (_nibbles(b[..., 2:]) - F64(8))).reshape(len(raw), -1)


def q4_1(raw):
    """GGML Q4_1, uint8 [N, 20 n] -> [N, 32 n]: f16 d, m, 16 bytes; w = d q + m. ggml-common.h"""
    b = np.asarray(raw).reshape(len(raw), -1, 20)
    return (_halves(b, 0) * _nibbles(b[..., 4:]) + _halves(b, 2)).reshape(len(raw), -1)


def q6_k(raw):
    """GGML Q6_K, uint8 [N, 210 n] -> [N, 256 n]: ql[128], qh[64], int8 s[16], f16 d.

    w = d s (q - 32). One element at a time, as dequantize_row_q6_K of ggml-quants.c: 128 elements
    from 64 bytes of ql and 32 of qh, four of them, 32 apart, from one byte of qh; a scale for 16.
    """
    b = np.asarray(raw).reshape(len(raw), -1, 210)
    w, d = np.zeros((*b.shape[:2], 256)), _halves(b, 208)[..., 0]
    scales = b[..., 192:208].copy().view(np.int8)
    for i in range(256):
        half, j, at = i // 128, i % 128 // 32, i % 32
        low = b[..., 64 * half + 32 * (j % 2) + at] >> (4 if j >= 2 else 0) & 15
        high = b[..., 128 + 32 * half + at] >> 2 * j & 3
        w[..., i] = d * scales[..., i // 16] * ((low | high << 4) - F64(32))
    return w.reshape(len(raw), -1)


def q1_0(raw):
    """GGML Q1_0, uint8 [N, 18 n] -> [N, 128 n]: f16 d, 16 bytes; w = d where the bit is 1, else -d.

    Bit j of byte i is that of element 8 i + j. dequantize_row_q1_0 of ggml-quants.c
    """
    b = np.asarray(raw).reshape(len(raw), -1, 18)
    bits = np.unpackbits(b[..., 2:], axis=-1, bitorder="little")
    return (_halves(b, 0) * np.where(bits, F64(1), F64(-1))).reshape(len(raw), -1)


def q2_0(raw):
    """GGML Q2_0, uint8 [N, 18 n] -> [N, 64 n]: f16 d, 16 bytes; w = d (q - 1), q two bits.

    Element i is in bits 2 (i % 4) and the next one of byte i // 4. dequantize_row_q2_0
    """
    b = np.asarray(raw).reshape(len(raw), -1, 18)
    q = np.stack([b[..., 2 + i // 4] >> 2 * (i % 4) & 3 for i in range(64)], -1)
    return (_halves(b, 0) * (q - F64(1))).reshape(len(raw), -1)


def by_package(kind):
    """What the gguf package makes of a type: float32, exact but for one sum with an offset."""
    return lambda raw: gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(F64)
