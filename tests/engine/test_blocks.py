"""BlockPool: who holds a block, which is taken next, what is known of it."""

import hashlib
import struct

import pytest

from boostr.engine.blocks import BlockPool, BlocksExhausted, chain
from boostr.errors import OptionError


def test_chain_is_blake2b_of_parent_and_int32():
    def key(parent, *ids):
        return hashlib.blake2b(parent + struct.pack("<3i", *ids), digest_size=16).digest()

    first = key(b"parent", 1, -2, 70000)
    assert list(chain(b"parent", [1, -2, 70000, 4, 5, 6], 3)) == [first, key(first, 4, 5, 6)]
    assert list(chain(b"other", [1, -2, 70000], 3)) != [first]


def test_take_gives_each_block_once():
    pool = BlockPool(5, 16)
    assert sorted(pool.take(3) + pool.take(2)) == [0, 1, 2, 3, 4]
    assert pool.free == 0


def test_take_is_all_or_none():
    pool = BlockPool(3, 16)
    pool.take(1)
    with pytest.raises(BlocksExhausted, match="3 blocks of 16 tokens asked, 2 free"):
        pool.take(3)
    assert pool.free == 2
    assert pool.take(0) == []


def test_shared_blocks_are_free_when_the_last_holder_leaves():
    pool = BlockPool(2, 16)
    blocks = pool.take(2)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.free == 0
    pool.release(blocks)
    assert pool.free == 2
    with pytest.raises(OptionError, match="nobody holds"):
        pool.release(blocks[:1])


def entered(pool, count):
    blocks = pool.take(count)
    keys = [bytes([block]) for block in blocks]
    for block, key in zip(blocks, keys, strict=True):
        pool.enter(block, key)
    return blocks, keys


def test_free_blocks_keep_their_keys_until_taken_oldest_first_and_tails_first():
    pool = BlockPool(4, 16)
    (a, b), (key_a, key_b) = entered(pool, 2)
    (c, d), (key_c, key_d) = entered(pool, 2)
    pool.release([c, d])
    pool.release([a, b])
    assert pool.free == 4
    assert [pool.find(key) for key in (key_a, key_b, key_c, key_d)] == [a, b, c, d]
    assert pool.take(3) == [d, c, b]
    assert [pool.find(key) for key in (key_a, key_b, key_c, key_d)] == [a, None, None, None]


def test_sharing_a_free_block_holds_it_and_makes_it_the_newest():
    pool = BlockPool(2, 16)
    (a, b), (key_a, key_b) = entered(pool, 2)
    pool.release([b])
    pool.release([a])
    pool.share([b])
    assert pool.free == 1
    pool.release([b])
    assert pool.take(1) == [a]
    assert (pool.find(key_a), pool.find(key_b)) == (None, b)


def test_blocks_without_a_key_are_taken_before_those_with_one():
    pool = BlockPool(3, 16)
    (a,), (key,) = entered(pool, 1)
    plain = pool.take(2)
    pool.release([a])
    pool.release(plain)
    assert pool.take(2) == plain
    assert pool.find(key) == a


def test_the_first_block_of_a_key_wins():
    pool = BlockPool(2, 16)
    a, b = pool.take(2)
    pool.enter(a, b"key")
    pool.enter(b, b"key")
    pool.enter(a, b"another")
    assert pool.find(b"key") == a
    assert pool.find(b"another") is None
    pool.release([a, b])
    assert pool.take(1) == [b]
    assert pool.find(b"key") == a


def test_forget_drops_keys_and_keeps_holders():
    pool = BlockPool(3, 16)
    blocks, keys = entered(pool, 2)
    pool.release(blocks[1:])
    pool.forget()
    assert [pool.find(key) for key in keys] == [None, None]
    assert pool.free == 2
    pool.enter(blocks[0], keys[0])
    assert pool.find(keys[0]) == blocks[0]


def test_grow_adds_blocks():
    pool = BlockPool(1, 16)
    pool.take(1)
    pool.grow(3)
    assert (pool.count, pool.free) == (3, 2)
    assert sorted(pool.take(2)) == [1, 2]
    with pytest.raises(OptionError, match="cannot shrink"):
        pool.grow(2)
    with pytest.raises(OptionError, match="sizes start at 1"):
        BlockPool(1, 0)
