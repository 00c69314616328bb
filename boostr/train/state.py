"""State: what a run needs to go on as if it had not stopped, in a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boostr.errors import ModelFileError
from boostr.io.safetensors import open_safetensors, save
from boostr.io.scratch import scratch_beside
from boostr.models.adapters import dropout_step
from boostr.operands import LowRank, Ordered
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor
from boostr.train.loss_scale import LossScale
from boostr.train.optimizers import Optimizer

if TYPE_CHECKING:
    from boostr.engine.trainable import Trainable

_MODEL, _OPTIMIZER, _VALUES = "model.safetensors", "optimizer.safetensors", "state.json"


def save_state(folder: str | Path, model: Trainable, optimizer: Optimizer, **values: Any) -> None:
    """Write what is trained, the optimizer's state and `values`, which JSON must hold.

    The folder is written beside its place and then moved there: it is never half of one.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remembered, settings = _remembered(model, optimizer), _settings(optimizer)
    with scratch_beside(folder) as scratch:
        made = scratch / "new"
        made.mkdir()
        save(made / _MODEL, {name: tensor.numpy() for name, tensor in _trained(model).items()})
        save(made / _OPTIMIZER, {name: tensor.numpy() for name, tensor in remembered.items()})
        text = json.dumps({"optimizer": settings, "values": values}, indent=2)
        (made / _VALUES).write_text(text + "\n")
        for path in made.iterdir():
            _flush(path)
        if folder.exists():
            folder.rename(scratch / "old")
        made.rename(folder)


def load_state(folder: str | Path, model: Trainable, optimizer: Optimizer) -> dict[str, Any]:
    """Put back what `save_state` wrote, in place, and return its values.

    Raises:
        ModelFileError: a state of another model, of other parameters or of another optimizer; of
            which nothing is put back.
    """
    folder = Path(folder)
    state = json.loads((folder / _VALUES).read_text())
    settings = _settings(optimizer)
    if state["optimizer"]["name"] != settings["name"]:
        raise ModelFileError(
            f"{folder}: this is a state of {state['optimizer']['name']}, not of {settings['name']}"
        )
    with open_safetensors(folder / _OPTIMIZER) as file:
        if "loss_scale" in file.names and optimizer.loss_scale is None:  # its step comes later
            optimizer.loss_scale = LossScale(model.runner.backend)
    parts = {_MODEL: _trained(model), _OPTIMIZER: _remembered(model, optimizer)}
    for name, tensors in parts.items():
        _check(folder / name, tensors)
    for name, tensors in parts.items():
        with open_safetensors(folder / name) as file:
            for key, tensor in tensors.items():
                tensor.assign(file.tensor(key))
    optimizer.lr = state["optimizer"]["lr"]
    return state["values"]


def model_key(model: Trainable, whole: bool = False) -> str:
    """What tells the model that a state is of from others of its shape: the forms of its weights,
    and the first row of each float that does not train; with `whole` of all."""
    digest = hashlib.sha256(type(model.module).__name__.encode())
    for name, weight in model.module.weights().items():
        base = weight.base if isinstance(weight, LowRank) else weight
        inner = base.base if isinstance(base, Ordered) else base
        if isinstance(inner, QuantizedTensor):
            digest.update(f"{name} {inner.scheme.name}\n".encode())
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        if whole or not tensor.requires_grad:
            first = tensor if len(tensor.shape) < 2 else tensor[:1]
            digest.update(first.numpy().tobytes())
    return digest.hexdigest()


def _trained(model: Trainable) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    return {"name": type(optimizer).__name__, "lr": optimizer.lr}


def _remembered(model: Trainable, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, by the names of the model's parameters."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    if any(id(p) not in names for p in optimizer.params):
        raise ModelFileError("the optimizer has parameters that are not of this model")
    found = {
        f"{state}.{names[id(p)]}": tensor
        for state, tensors in optimizer.tensors().items()
        for p, tensor in zip(optimizer.params, tensors, strict=True)
        if tensor is not None
    }
    step, scale = dropout_step(model.module), optimizer.loss_scale
    found |= {"count": optimizer.count} | ({} if step is None else {"dropout_step": step})
    return found | ({} if scale is None else scale.tensors())


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """That a file has these tensors, in their shapes and dtypes."""
    with open_safetensors(path) as file:
        if {*file.names} != {*tensors}:
            wrong = sorted({*file.names} ^ {*tensors})
            raise ModelFileError(f"{path}: other tensors than expected: {wrong[:4]}")
        for key, tensor in tensors.items():
            stored = file.tensor(key)
            if stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                raise ModelFileError(
                    f"{path}: {key} must be {tensor.dtype}{list(tensor.shape)}, got "
                    f"{stored.dtype}{list(stored.shape)}"
                )


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
