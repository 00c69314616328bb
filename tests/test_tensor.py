"""Tensor: creation, conversion, operators, in-place assignment."""

import math

import ml_dtypes
import numpy as np
import pytest
from conftest import holding, selector
from draws import normal, refused

import boostr
from boostr import Tensor, arange, dtypes, full, ones, zeros
from boostr.errors import BackendError, DTypeError, ShapeError


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, "float32"),
        (3, "int32"),
        (True, "bool"),
        ([[1, 2], [3, 4]], "int32"),
        ([1.0, 2], "float32"),
        ([], "float32"),
        (np.float64(2), "float64"),
        (np.arange(3), "int64"),
        (np.zeros(2, ml_dtypes.bfloat16), "bfloat16"),
        ((1, 2), "int32"),
    ],
    ids=str,
)
def test_created_from(data, dtype, plain_backend):
    x = Tensor(data, backend=holding(plain_backend, dtype))
    assert x.dtype == dtypes.parse(dtype) and x.shape == np.shape(data)
    np.testing.assert_array_equal(x.numpy(), np.asarray(data))


def test_one_of_another_tensor_is_a_copy(plain_backend):
    x = Tensor([1.0, 2.0], backend=plain_backend)
    Tensor(x).assign(np.float32([5, 5]))
    np.testing.assert_array_equal(x.numpy(), [1, 2])


def test_created_with_dtype(plain_backend):
    assert Tensor([1, 2], "bf16", plain_backend).dtype == dtypes.bfloat16
    assert Tensor(np.zeros(2), np.float16, plain_backend).dtype == dtypes.float16
    x = Tensor([1.0], backend=plain_backend)
    assert Tensor(x, "int32").tolist() == [1] and Tensor(x).backend is plain_backend


def test_creation_functions(plain_backend):
    assert zeros((2, 3), backend=plain_backend).tolist() == [[0, 0, 0]] * 2
    assert ones(2, "int8", plain_backend).tolist() == [1, 1]
    assert full((), 7, "int32", plain_backend).item() == 7
    assert arange(3, backend=plain_backend).tolist() == [0, 1, 2]
    assert arange(1, 2, 0.25, "float32", plain_backend).tolist() == [1, 1.25, 1.5, 1.75]
    assert boostr.Tensor is Tensor


def test_described(plain_backend):
    x = zeros((2, 3), "float16", plain_backend)
    assert (x.shape, x.ndim, x.size, x.nbytes, len(x)) == ((2, 3), 2, 6, 12, 2)
    assert x.device == plain_backend.device
    assert repr(x).startswith(f"Tensor(shape=[2, 3], dtype=float16, device={x.device})\n[[0. 0.")
    assert "\n" not in repr(zeros((2000,), backend=plain_backend))
    assert "requires_grad" in repr(Tensor([1.0], backend=plain_backend, requires_grad=True))


def test_python_numbers(plain_backend):
    x = Tensor([[2.5]], backend=plain_backend)
    assert x.item() == float(x) == 2.5 and int(x) == 2 and bool(x)
    with refused(ShapeError, "item", "one element", "[2]"):
        zeros(2, backend=plain_backend).item()
    with pytest.raises(TypeError, match="len"):
        len(full((), 1, backend=plain_backend))


def test_numpy_reads_a_tensor(plain_backend):
    x = Tensor([1.0, 2.0], backend=plain_backend)
    assert np.asarray(x).dtype == np.float32 and np.array(x, np.float64).tolist() == [1, 2]


def test_numpy_backend_shares_memory_with_the_caller():
    data = np.zeros(3, np.float32)
    x = Tensor(data, backend="numpy")
    data[1] = 5
    assert x.tolist() == [0, 5, 0]


def test_dlpack(rng):
    x = Tensor(normal(rng, (2, 3)), backend="numpy")
    np.testing.assert_array_equal(np.from_dlpack(x), x.numpy())

    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    data = normal(rng, (4,))
    np.testing.assert_array_equal(Tensor(Foreign(data), backend="numpy").numpy(), data)


def test_to(plain_backend):
    x = Tensor([1.0], backend=plain_backend)
    assert x.to(plain_backend) is x and x.to(selector(plain_backend.name)) is x
    assert x.to("float32") is x and x.to("bf16").dtype == dtypes.bfloat16
    assert x.to(np.float16).dtype == dtypes.float16
    assert x.to("numpy").device == "numpy"


def test_operators(plain_backend):
    x, y = (Tensor(v, backend=plain_backend) for v in ([4.0, -9.0], [2.0, 2.0]))
    table = [
        (x + y, [6, -7]), (x - y, [2, -11]), (x * y, [8, -18]), (x / y, [2, -4.5]),
        (x**2, [16, 81]), (x // y, [2, -5]), (x % y, [0, 1]), (1 + x, [5, -8]), (1 - x, [-3, 10]),
        (2 * x, [8, -18]), (8 / y, [4, 4]), (2**y, [4, 4]), (-x, [-4, 9]), (abs(x), [4, 9]),
        (x == 4, [True, False]), (x != 4, [False, True]), (x < y, [False, True]),
        (x <= 4, [True, True]), (x > y, [True, False]), (x >= 4, [True, False]),
        (x.sum(), -5), (x.mean(), -2.5), (x.max(), 4), (x.min(), -9), (x.argmax(), 0),
        (y.exp(), [math.exp(2)] * 2), (y.log(), [math.log(2)] * 2), (y.sqrt(), [2**0.5] * 2),
        (y.rsqrt(), [2**-0.5] * 2), (y.sin(), [math.sin(2)] * 2), (y.cos(), [math.cos(2)] * 2),
        (y.tanh(), [math.tanh(2)] * 2), (y.sigmoid(), [1 / (1 + math.exp(-2))] * 2),
    ]  # fmt: skip
    for got, want in table:
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-6)
    n, m = (Tensor(v, backend=plain_backend) for v in ([6, 5], [3, 1]))
    for got, want in ((n & m, [2, 1]), (n | m, [7, 5]), (n ^ m, [5, 4]), (n >> m, [0, 2]),
                      (n << m, [48, 10])):  # fmt: skip
        assert got.tolist() == want
    assert len({x, y}) == 2  # hashable by identity


def test_assign(plain_backend):
    x = zeros((2, 2), backend=plain_backend)
    row = x[1]
    assert x.assign(np.float32([[1, 2], [3, 4]])) is x
    assert row.tolist() == [3, 4]
    x[:, 0].assign(Tensor(np.float16([7, 8]), backend=plain_backend))
    assert x.tolist() == [[7, 2], [8, 4]]


def test_a_view_of_a_file_is_not_assigned(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3, np.float32))
    x = Tensor(np.load(tmp_path / "x.npy", mmap_mode="r"), backend="numpy")
    with pytest.raises(BackendError, match=r"assign: .* a view of a file .* trainable=True"):
        x.assign(np.zeros(3, np.float32))


def test_detach(plain_backend):
    x = Tensor([1.0], backend=plain_backend, requires_grad=True)
    y = x.detach()
    assert not y.requires_grad and not (y * 2).requires_grad
    x.assign(np.float32([5]))
    assert y.item() == 5


def test_refuses():
    x = zeros((2, 3), backend="numpy")
    with refused(DTypeError, "numbers", "<U1"):
        Tensor(["a"])
    with refused(DTypeError, "float", "int32"):
        Tensor([1], requires_grad=True)
    with refused(ShapeError, "assign", "[2, 3]", "[3]"):
        x.assign(np.zeros(3))
    with refused(DTypeError, "unknown dtype", "'float33'"):
        zeros(2, "float33")
    with refused(DTypeError, "not a dtype"):
        zeros(2, object.__doc__.join)
    with refused(BackendError, "'numpi'", "did you mean 'numpy'"):
        zeros(2, backend="numpi")
    with refused(BackendError, "numpy", "'1'"):
        zeros(2, backend="numpy:1")


def test_tensors_of_two_backends_do_not_mix():
    from boostr.backends.numpy import NumpyBackend

    class Other(NumpyBackend):
        device = "numpy-two"  # type: ignore[assignment]

    other = Other()
    x, y = zeros((2, 2), backend="numpy"), zeros((2, 2), backend=other)
    i = zeros(2, "int32", other)
    for name, call in {
        "add": lambda: x + y,
        "matmul": lambda: x @ y,
        "take": lambda: x[i],
        "where": lambda: boostr.ops.core.where(x > 0, y, 0),
        "concat": lambda: boostr.ops.core.concat([x, y]),
        "scatter_add": lambda: boostr.ops.core.scatter_add((2, 2), i, x),
        "rms_norm": lambda: boostr.ops.rms_norm(x, y[0]),
        "linear": lambda: boostr.ops.linear(x, y),
        "assign": lambda: x.assign(y),
    }.items():
        with refused(BackendError, name, "numpy", "numpy-two"):
            call()
