"""quantize: a checkpoint as a smaller one that other programs read too, a tensor at a time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boostr import backends, ops
from boostr.backends.base import Backend
from boostr.engine.calibrate import Calibration, Fitted
from boostr.engine.convert import write_folder
from boostr.engine.gptq import Inputs, can_round, gptq
from boostr.engine.inputs import of_types
from boostr.engine.load import empty_module, folder_config, heads_of
from boostr.engine.modules import transformer_folder
from boostr.engine.smooth import smooth
from boostr.errors import ModelFileError, NumericsError, OptionError, ShapeError
from boostr.io.disk import room_for
from boostr.io.gguf import GGUFFile
from boostr.io.hub import ResolvedModel, resolve
from boostr.io.mapping import release
from boostr.io.safetensors import SafetensorsSource, open_safetensors
from boostr.models.base import Model
from boostr.models.config import RawConfig
from boostr.models.gguf_mix import check_mix
from boostr.models.heads import ClassifierSpec
from boostr.models.lazy import Expected, LazyWeight, whole
from boostr.models.quantized import method_of, refuse_quantized
from boostr.models.save import carry_over, new_folder, write_shards
from boostr.models.weights import CheckpointWeights, check_names, stored_weights
from boostr.quant.formats.layout import Method, scale_name
from boostr.quant.recipes import Modules, Recipe, recipe
from boostr.quant.scheme import QuantizedTensor, Scheme
from boostr.tensor import Tensor

SHARD_BYTES = 1_000_000_000  # in memory until it is written
_BAND_BYTES = 64 * 2**20  # of float32 rows that are rounded at once
_AS_STORED = "as stored"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Quantized:
    """What `quantize` wrote.

    Attributes:
        path: the folder.   weight_bytes, source_bytes: of all tensors, now and before.
        schemes: name of a scheme, or "as stored" -> how many weights [N, K] have it.
        tables: what "embedding" has, and "head" if it is of its own, in the same words.
    """

    path: Path
    weight_bytes: int
    source_bytes: int
    schemes: Mapping[str, int]
    tables: Mapping[str, str]


def quantize(
    model: str | Path | None,
    out: str | Path,
    scheme: str,
    *,
    quantize_embeddings: str | bool | None = None,
    calibrate: str | None = None,
    calibration_chunks: int = 32,
    backend: str | Backend | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Write a quantized copy of a model: config, tokenizer, template and all else carried over.

    A tensor is read, rounded in bands of rows and written. Nothing is at `out` until all is.

    Args:
        model: as in `load`: a Hugging Face folder of float weights.
        out: the folder to make, or NAME.gguf; it must not exist.
        scheme: "int8", "int8-g32|g64|g128", "w8a8", "int4-g32|g64|g128", "fp8" (a folder of
            compressed-tensors), "nf4" (of bitsandbytes), "mlx:4" (of mlx-lm: 2, 3, 4, 5, 6 or 8
            bits, "mlx:4-g32" for groups of 32), or a file of GGUF, "gguf:Q4_K_M" (see `convert`).
        quantize_embeddings: as in `load`. compressed-tensors packs a head of its own alone, and
            bitsandbytes neither; an embedding that is the head too then stays as it is. Types of
            GGUF say it themselves.
        calibrate: a text like those that the model is for; the weights of its layers are then
            rounded by GPTQ so that what they make of it changes least (int8, int4, mlx), or under
            w8a8 take up what makes inputs uneven (SmoothQuant). Of decoders, whole on `backend`.
        calibration_chunks: at most so many chunks of 512 tokens of the text.
        backend: what rounds; GGUF is rounded on the host.
        progress: called after each tensor: (tensors done, of how many, name).
    Raises:
        OptionError: a scheme that there is not, or an `out` that exists or is named otherwise.
        ModelFileError: a model that is quantized already, or a tensor that the scheme cannot hold.
        DiskFullError: too little room for it.
    """
    of_types("quantize", _TYPES, locals())
    _check_scheme(scheme, quantize_embeddings, calibrate)
    out = _checked_out(Path(out), scheme)
    chosen = backends.get(backend)
    found = resolve(model or None, revision=revision, offline=offline)
    inner, config = _float_folder(found)
    if scheme.startswith("gguf:"):
        return _as_gguf(inner, out, scheme.removeprefix("gguf:"), progress)
    with open_safetensors(inner) as files:
        headless, classifier = heads_of(found.path, config)
        source = _Source(empty_module(config, headless), files, str(inner), classifier)
        plan = recipe(scheme, quantize_embeddings, scale_name(source.dtype))
        source.check(plan, quantize_embeddings)
        with new_folder(out) as made, room_for(out, _bytes(files, source.schemes(plan))):
            carry_over(found.path, made, inner / "config.json")
            folder = made / inner.relative_to(found.path)
            method = _described(folder, config, plan, source)
            writer = _Writer(source, plan, method, chosen, progress)
            if calibrate is not None:
                writer.fit(found.path, calibrate, calibration_chunks)
            write_shards(folder, writer.tensors(), SHARD_BYTES)
            return writer.summary(out, _bytes(files))


def _described(folder: Path, config: RawConfig, plan: Recipe, source: _Source) -> Method:
    """Write the config.json that says what the weights are; the method that lays them out so."""
    raw = dict(config.given) | plan.config(source.modules)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    method = method_of(raw, plan.name)
    if method is None:
        raise ModelFileError(f"{plan.name}: its config names no method")
    return method


def _float_folder(found: ResolvedModel) -> tuple[Path, RawConfig]:
    """Where the weights of a model lie, of which some can be quantized; and its config."""
    if found.kind == "gguf":
        raise ModelFileError(
            f"{found.source}: a GGUF file is quantized already, or lies as llama.cpp wants it; "
            "take the folder that it was made from, or make one: boostr convert"
        )
    inner = transformer_folder(found.path)
    config = folder_config(inner)
    refuse_quantized(inner, config.raw, config.source)
    return inner, config


def _as_gguf(inner: Path, out: Path, kind: str, progress: Progress | None) -> Quantized:
    write_folder(inner, out, kind, progress)
    with open_safetensors(inner) as files, GGUFFile(out) as made:
        before = _bytes(files)
        after = sum(tensor.nbytes for tensor in made.tensors.values())
        types = {n: t.type for n, t in made.tensors.items() if len(t.shape) > 1}
    names = {"embedding": "token_embd.weight", "head": "output.weight"}
    tables = {role: types[name] for role, name in names.items() if name in types}
    return Quantized(out, after, before, Counter(types.values()), tables)


def _bytes(files: SafetensorsSource, schemes: Mapping[str, Scheme] | None = None) -> int:
    """Of all tensors, of which some are given a scheme; formats may add small ones."""
    total = 0
    for name in files.names:
        *lead, K = files.shape(name) or (1,)
        scheme = None if schemes is None else schemes.get(name)
        row = K * files.dtype(name).itemsize if scheme is None else scheme.row_bytes(K)
        total += math.prod(lead) * row
    return total


def _checked_out(out: Path, scheme: str) -> Path:
    if out.exists():
        raise OptionError(f"quantize: {out} exists already; take another name, or remove it")
    is_gguf = scheme.startswith("gguf:")
    if is_gguf != (out.suffix == ".gguf"):
        made = "is a file; expected NAME.gguf" if is_gguf else "is a folder; expected another name"
        raise OptionError(f"quantize: what is made under {scheme} {made}, got {out.name}")
    return out


def _check_scheme(scheme: str, tables: str | bool | None, calibrate: str | None) -> None:
    """Raises OptionError for an unknown scheme, before a model is fetched for it, and for what a
    type of GGUF leaves no choice of."""
    if not scheme.startswith("gguf:"):
        recipe(scheme, tables, "f32")
        return
    check_mix(scheme.removeprefix("gguf:"))
    _refuse_calibration(scheme, calibrate is not None)
    if tables is not None:
        raise OptionError(
            f"quantize: the types of embedding and head come with {scheme}; leave "
            "quantize_embeddings out"
        )


def _check_fits(plan: Recipe, chunks: int) -> None:
    """Raises OptionError if there is nothing that calibration could do for a recipe."""
    if chunks < 1:
        raise OptionError(f"quantize: calibration_chunks must be 1 or more, got {chunks}")
    scheme = plan.schemes["linear"]
    _refuse_calibration(plan.name, not can_round(scheme))


def _refuse_calibration(target: str, refused: bool) -> None:
    if refused:
        raise OptionError(
            "quantize: calibrate is for int8, w8a8, int4 and mlx schemes, whose codes are in "
            f"equal steps; {target} is not"
        )


class _Source:
    """A plain checkpoint: its tensors, and what the model's family takes each for.

    Attributes:
        weights: by their names in the checkpoint.   roles: of those that the model has: "linear",
            "embedding", "head" or "vector".   dtype: of its linear weights.
        plan: the family's.   parameters: tensor -> what is made of it.
    What `classifier` owns stays as it is.
    """

    def __init__(
        self,
        module: Model,
        files: SafetensorsSource,
        path: str,
        classifier: ClassifierSpec | None = None,
    ) -> None:
        plan = module.load_plan(module.config)
        places = {name: (owner, attribute) for name, owner, attribute in module.places()}
        weights = stored_weights(files, path)
        apart = {n for n in weights if classifier is not None and classifier.owns(n)}
        own = {name: weight for name, weight in weights.items() if name not in apart}
        source = CheckpointWeights(own, path, plan)
        check_names(places, source)
        self.weights, self.roles = weights, dict[str, str]()
        self.plan, self.parameters = plan, dict[str, list[str]]()
        for name, (owner, attribute) in places.items():
            for stored in source.sources(name):
                self.roles[stored] = getattr(owner, attribute).role
                self.parameters.setdefault(stored, []).append(name)
        # a tied head has no tensor, but is a module that configs must leave alone
        head = plan.checkpoint_names({"lm_head.weight": (1, 1)})["lm_head.weight"]
        self._heads = tuple(name.removesuffix(".weight") for name in head)
        linear = next(name for name, role in self.roles.items() if role == "linear")
        self.dtype = np.dtype(weights[linear].read((range(1), range(1))).dtype)

    def schemes(self, plan: Recipe) -> dict[str, Scheme]:
        """Tensor -> what a recipe makes of it, of those that it does not leave as they are."""
        return {n: plan.schemes[role] for n, role in self.roles.items() if role in plan.schemes}

    def check(self, plan: Recipe, tables: str | bool | None) -> None:
        """Raises, before any weight is read, if a scheme cannot hold one, or if `tables` asks for
        what no weight of the model can become."""
        if tables and not {"embedding", "head"} & {*plan.schemes} & {*self.roles.values()}:
            raise OptionError(
                f"quantize: {plan.method} packs a head of its own alone, which this model has not; "
                "leave quantize_embeddings out, or take a scheme of mlx: or gguf:"
            )
        packed: dict[str, LazyWeight] = {}
        for name, scheme in self.schemes(plan).items():
            weight = self.weights[name]
            packed[name] = Expected(weight.shape, (name,), weight.path, scheme.name)
            if len(weight.shape) != 2 or not name.endswith(".weight"):
                raise ModelFileError(
                    f"{weight.path}: {name} {list(weight.shape)}: only matrices NAME.weight can be "
                    f"written as {scheme.name}"
                )
            multiple = math.lcm(scheme.multiple, scheme.group_size or 1)
            if weight.shape[1] % multiple:
                raise ModelFileError(
                    f"{weight.path}: {name} has {weight.shape[1]} inputs, and {scheme.name} is "
                    f"written in multiples of {multiple}; take smaller groups, or int8"
                )
        self.plan.load(packed)  # raises where a rule takes floats alone

    def smooth(self, calibration: Calibration, scheme: Scheme) -> None:
        """The same model smoothed, under the same names."""
        parameters = smooth(self.plan.load(self.weights).weights, calibration, scheme)
        for weight in self.plan.save(parameters).values():
            name, *more = weight.sources
            if more:
                raise ModelFileError(
                    f"{weight.path}: {name}, {', '.join(more)}: expected one tensor, as the family "
                    "writes it; w8a8 of this checkpoint can be had without calibrate"
                )
            self.weights[name] = weight

    @property
    def modules(self) -> Modules:
        """All modules that have a matrix, by what becomes of it."""
        named: dict[str, list[str]] = {"embedding": [], "head": [], "": [*self._heads]}
        for name, weight in self.weights.items():
            module, role = name.removesuffix(".weight"), self.roles.get(name, "")
            if module != name and len(weight.shape) == 2 and role in named:
                named[role].append(module)
        left = [name for name in named[""] if name not in named["head"]]
        return Modules(named["embedding"], named["head"], left)


class _Writer:
    """The tensors of the new checkpoint, in the order of the old one."""

    def __init__(
        self, source: _Source, plan: Recipe, method: Method, backend: Backend,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self._source, self._plan, self._method = source, plan, method
        self._backend, self._progress = backend, progress
        self._schemes: Counter[str] = Counter()
        self._tables: dict[str, str] = {}
        self._after = 0
        self._fitted: Fitted | None = None

    def fit(self, path: Path, text: str, chunks: int) -> None:
        """Smooth what is read if it is rounded too, else round what calibration has seen by it."""
        _check_fits(self._plan, chunks)
        calibration = Calibration.of(path, self._backend, text, chunks)
        scheme = self._plan.schemes["linear"]
        if scheme.activations_int8:
            self._source.smooth(calibration, scheme)
            return
        self._fitted = Fitted(calibration, self._source.plan, self._source.parameters)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of all."""
        weights = self._source.weights
        names = sorted(weights, key=self._fitted.order) if self._fitted else weights
        for number, name in enumerate(names):
            weight = weights[name]
            for part, array in self._made(name, weight).items():
                self._after += array.nbytes
                yield part, array
            if self._progress is not None:
                self._progress(number + 1, len(weights), name)

    def _made(self, name: str, weight: LazyWeight) -> Mapping[str, np.ndarray]:
        """What becomes of a tensor."""
        role = self._source.roles.get(name, "")
        scheme = self._plan.schemes.get(role)
        if len(weight.shape) == 2:
            said = _AS_STORED if scheme is None else scheme.name
            self._schemes[said] += 1
            if role in ("embedding", "head"):
                self._tables[role] = said
        if scheme is None:
            return {name: weight.read(whole(weight.shape))}
        module = name.removesuffix(".weight")
        parts = self._method.written(module, self._packed(name, weight, scheme))
        if parts is None:
            raise ModelFileError(f"{name}: {self._method.name} has no form for {scheme.name}")
        return {f"{module}.{part}": array for part, array in parts.items()}

    def _packed(self, name: str, weight: LazyWeight, scheme: Scheme) -> QuantizedTensor:
        """The weight on the host, rounded in bands of rows."""
        N, K = weight.shape
        step = max(1, _BAND_BYTES // (4 * K))
        inputs = None if self._fitted is None else self._fitted.inputs(name)
        bands = []
        for start in range(0, N, step):
            array = weight.read((range(start, min(start + step, N)), range(K)))
            try:
                bands.append(self._rounded(array, scheme, inputs))
            except (NumericsError, ShapeError) as error:
                raise ModelFileError(f"{weight.path}: {name}: {error}") from None
            release(array)
        host = backends.get("numpy")
        planes = {part: np.concatenate([band[part] for band in bands]) for part in scheme.parts}
        parts = {part: Tensor(plane, backend=host) for part, plane in planes.items()}
        packed = QuantizedTensor(scheme, (N, K), parts)
        if self._fitted is not None and inputs is not None:
            self._fitted.put(name, packed)
        return packed

    def _rounded(
        self, array: np.ndarray, scheme: Scheme, inputs: Inputs | None
    ) -> Mapping[str, np.ndarray]:
        """The planes of some rows."""
        plain = ops.quantize(Tensor(array, backend=self._backend), scheme)  # refuses what is none
        if inputs is not None:
            return gptq(array.astype(np.float32), inputs, scheme)
        return {name: part.numpy() for name, part in plain.parts.items()}

    def summary(self, out: Path, before: int) -> Quantized:
        """What has been written, once all is."""
        schemes, tables = dict(self._schemes), dict(self._tables)
        return Quantized(out, self._after, before, schemes, tables)


_TYPES = {
    "model": (str, Path, type(None)), "out": (str, Path), "scheme": (str,),
    "quantize_embeddings": (str, bool, type(None)), "backend": (str, Backend, type(None)),
    "calibrate": (str, type(None)), "calibration_chunks": (int,), "revision": (str, type(None)),
    "offline": (bool, type(None)),
}  # fmt: skip
