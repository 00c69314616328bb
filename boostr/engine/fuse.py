"""fuse: a model and an adapter as one folder of merged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boostr import backends
from boostr.engine.inputs import of_types
from boostr.engine.load import folder_config, load
from boostr.engine.modules import transformer_folder
from boostr.errors import ModelFileError, OptionError
from boostr.io.disk import room_for
from boostr.io.hub import resolve
from boostr.io.peft import read_adapter
from boostr.models.quantized import method_in
from boostr.models.save import carry_over, new_folder, save_folder

_TYPES = {
    "model": (str, Path, type(None)), "adapter": (str, Path), "out": (str, Path),
    "dequantize": (bool,), "revision": (str, type(None)), "offline": (bool, type(None)),
}  # fmt: skip


def fuse(
    model: str | Path | None,
    adapter: str | Path,
    out: str | Path,
    *,
    dequantize: bool = False,
    dtype: Any = None,
    revision: str | None = None,
    offline: bool | None = None,
) -> Path:
    """Write a model with an adapter merged into its weights, as a folder that others read too.

    The sum is made in float32 and rounded to the dtype of the weights. Config, tokenizer and all
    else is carried over; nothing is at `out` until all is.

    Args:
        model: as in `load`: a Hugging Face folder.   adapter: a folder in peft's format.
        out: the folder to make; it must not exist.
        dequantize: a base that is packed becomes floats, by default bfloat16; it is refused else.
        dtype: of the matrices that are written, "float32", "float16" or "bfloat16"; default as
            stored.
    Returns:
        `out`.
    Raises:
        OptionError: an `out` that exists; a packed base without `dequantize`.
        ModelFileError: a GGUF file; an adapter that is not supported or not of this model.
        DiskFullError: too little room for it.
    """
    of_types("fuse", _TYPES, locals())
    out = Path(out)
    if out.exists():
        raise OptionError(f"fuse: {out} exists already; take another name, or remove it")
    read_adapter(adapter)  # what is none is refused before a model is fetched
    found = resolve(model, revision=revision, offline=offline)
    if found.kind == "gguf":
        raise ModelFileError(
            f"{found.source}: a GGUF file is not merged into; make a folder of it first (boostr "
            "convert), or use the two together (adapter=)"
        )
    inner = transformer_folder(found.path)
    if method_in(inner, folder_config(inner).raw) is not None:
        if not dequantize:
            raise OptionError(
                f"fuse: {found.source} is packed; merging makes floats of it, which "
                "dequantize=True (--dequantize) allows"
            )
        dtype = dtype or "bfloat16"
    host = backends.get("numpy")  # merging is exact there: factors are not rounded before
    merged: Any = load(found.path, backend=host, dtype=dtype, adapter=adapter, offline=True)
    merged.merge_adapter()
    with new_folder(out) as made, room_for(out, merged.weight_bytes):
        carry_over(found.path, made, inner / "config.json")
        folder = made / inner.relative_to(found.path)
        save_folder(merged.module, folder, head=merged.classifier)
    return out
