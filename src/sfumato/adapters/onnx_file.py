"""An ONNX file as a denoiser: what its inputs mean is said by the caller, or by a JSON file beside it.

An ONNX graph has named inputs with types and shapes, and no word on what they mean. That is said with

    inputs     which input is `x`, which is `noise` (the noise level), and which are conditions, by our names:
               {"x": "noisy", "noise": "sigma", "label": "digit"}
    output     which output is the answer; not needed if there is one
    schedule   of the noise it was trained on: a Schedule, or {"kind": "edm", ...}
    sigma_data of the process, 1 if not said
    predicts   the row: eps, v, x0, score, velocity, edm, flow or -edm     (see `adapted`)
    clock      how it is told the noise level: index, flow, time, sigma, log-snr or edm; steps for the first two
    scaled     whether it wants its input scaled to unit size
    classes    how many labels it has; the label of that number means none
    endpoint   whether it answers where the flow through x_t ends instead of the mean of x_0, see below

as keywords, or in NAME.json beside NAME.onnx; keywords win. The graph is checked against it before anything is run.

**Endpoints.** A one-step model (consistency, endpoint distillation) is not a denoiser in the strict sense. Its
f(x_t, t) is one sample, where the probability flow through x_t ends; the mean of x_0 given x_t is the average of many.
One step from the prior to clean data, x = f(x_T), is what it was made for. To the solvers of the flow, which ask for
means, its answers are wrong between the ends, and whether it may be given new noise and asked again depends on the
levels that it was distilled at. `endpoint` keeps that known: it is `denoiser.endpoint`, and nothing here turns one into
the other.

**Safety.** An ONNX graph is data: no code comes with it. It is read through `onnx`, bounded in size; weights in other
files must lie in its folder; onnxruntime is given bytes and never opens a file itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..denoisers import Condition
from ..errors import BundleError, MissingExtra, SolverError, choose
from ..processes import Gaussian, Schedule, build_schedule
from .adapted import Adapted, Reading, as_row
from .folders import read_json

LARGEST = 2**31 - 1  # bytes, its outer weights included: what a protobuf may hold
SAID = {
    "inputs": dict,
    "output": str,
    "schedule": (dict, Schedule),
    "sigma_data": (int, float),
    "predicts": str,
    "clock": str,
    "steps": int,
    "scaled": bool,
    "classes": int,
    "endpoint": bool,
}
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def from_onnx(path: str | Path, **said: Any) -> OnnxDenoiser:
    """The denoiser in an ONNX file; said: see the head of this file, together with the JSON beside the file.

    It runs on the CPU, answers without gradients, and many threads may ask it at once.
    Raises BundleError in one line for a file that is damaged, too large or reaches outside its folder, and for a
    description that does not fit its inputs and outputs; MissingExtra without onnx and onnxruntime.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    values = {**(read_json(beside) if beside.is_file() else {}), **said}
    for name, value in values.items():
        kind: Any = SAID[choose(name, SAID, "word about an ONNX denoiser", BundleError)]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise BundleError(f"{name} of an ONNX denoiser cannot be {value!r}")
    for name in ("inputs", "schedule", "predicts", "clock"):
        if name not in values:
            raise BundleError(
                f"{path.name} does not say its {name}: give {name}=..., or write it in {beside}"
            )
    schedule = values["schedule"]
    try:
        schedule = build_schedule(**schedule) if isinstance(schedule, dict) else schedule
        process = Gaussian(schedule, values.get("sigma_data", 1.0))
        reading = Reading(
            values["predicts"], values["clock"], values.get("steps", 1000), values.get("scaled", False)
        )
    except (SolverError, TypeError) as error:
        raise BundleError(f"what is said of {path.name} is not possible: {error}") from None
    network = OnnxNetwork(path, values["inputs"], values.get("output"), values.get("classes", 0))
    return OnnxDenoiser(network, process, reading, endpoint=values.get("endpoint", False))


class OnnxDenoiser(Adapted):
    """The denoiser of an ONNX file. endpoint: whether x0 is where the flow ends, and not the mean."""

    def __init__(self, network: OnnxNetwork, process: Gaussian, reading: Reading, *, endpoint: bool = False):
        super().__init__(network, process, reading)
        self.endpoint = endpoint
        self.eval().requires_grad_(False)


class OnnxNetwork(nn.Module):
    """An ONNX graph with the signature of our networks; `inputs` as at the head of this file.

    Its one parameter is empty: it says in which precision and on which device the graph is asked.
    """

    kind = "onnx"

    def __init__(self, path: Path, inputs: Mapping[str, str], output: str | None, classes: int = 0):
        super().__init__()
        content = read_graph(path)
        self.session = _session(content, path.name)
        self.taken = {entry.name: entry for entry in self.session.get_inputs()}
        for ours, theirs in inputs.items():
            choose(theirs, self.taken, f"input for {ours!r} of {path.name}", BundleError)
            if self.taken[theirs].type not in _TYPES:
                raise BundleError(
                    f"input {theirs!r} of {path.name} is {self.taken[theirs].type}: not supported"
                )
        for ours in ("x", "noise"):
            if ours not in inputs:
                raise BundleError(f"inputs of {path.name} do not say which one is {ours!r}: {dict(inputs)}")
        unsaid = sorted(set(self.taken) - set(inputs.values()))
        if unsaid or len(set(inputs.values())) < len(inputs):
            raise BundleError(
                f"each input of {path.name} must be said once; it has {', '.join(self.taken)}, "
                f"and said are {dict(inputs)}"
            )
        if len(self.taken[inputs["x"]].shape) < 2:
            raise BundleError(f"input {inputs['x']!r} of {path.name} is no batch of states: it has one axis")
        outputs = [entry.name for entry in self.session.get_outputs()]
        if output is None and len(outputs) > 1:
            raise BundleError(f"{path.name} has outputs {', '.join(outputs)}: say which one is the answer")
        self.output = outputs[0] if output is None else choose(output, outputs, "output", BundleError)
        self.inputs = dict(inputs)
        self.config = {
            "file": path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "inputs": self.inputs,
            "output": self.output,
            "classes": classes,
        }
        self.like = nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor, told: Tensor, condition: Condition = None) -> Tensor:
        conditions = [name for name in self.inputs if name not in ("x", "noise")]
        given = dict(condition or {})
        for name in given:
            choose(name, conditions, "condition of this network", SolverError)
        if "label" in conditions and "label" not in given:
            given["label"] = x.new_full((len(x),), self.config["classes"], dtype=torch.long)
        missing = [name for name in conditions if name not in given]
        if missing:
            raise SolverError(f"this network also needs the conditions {', '.join(missing)}")
        rows = {name: as_row(value, x, None, name) for name, value in given.items()}
        fed = {"x": x, "noise": told, **rows}
        fixed = self.taken[self.inputs["x"]].shape[0]
        if isinstance(fixed, int) and fixed != len(x):
            if fixed != 1:
                raise SolverError(f"this network takes {fixed} samples at a time, not {len(x)}")
            parts = [
                self._run({name: value[i : i + 1] for name, value in fed.items()}) for i in range(len(x))
            ]
            return torch.cat(parts).to(x.device)
        return self._run(fed).to(x.device)

    def _run(self, fed: Mapping[str, Tensor]) -> Tensor:
        feed = {
            self.inputs[name]: self._fit(self.taken[self.inputs[name]], value, name)
            for name, value in fed.items()
        }
        try:
            answer = self.session.run([self.output], feed)[0]
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise SolverError(f"onnxruntime refused: {str(error).splitlines()[0]}") from error
        return torch.from_numpy(answer)

    @staticmethod
    def _fit(entry: Any, value: Tensor, name: str) -> np.ndarray:
        """A tensor as an input wants it; raises SolverError in one line if its shape does not fit."""
        array = value.detach().cpu().numpy()
        if name == "noise" and len(entry.shape) == 0:
            if (array != array[0]).any():
                raise SolverError(
                    f"input {entry.name!r} takes one noise level for the whole batch, not several"
                )
            array = array[0]
        elif name == "noise":
            array = array.reshape(-1, *[1] * (len(entry.shape) - 1))
        wanted = tuple(n if isinstance(n, int) else None for n in entry.shape)
        fits = array.ndim == len(wanted) and all(
            n in (None, m) for n, m in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            shown = ", ".join("any" if n is None else str(n) for n in wanted)
            raise SolverError(f"input {entry.name!r} ({name}) takes ({shown}), not {array.shape}")
        return np.ascontiguousarray(array, dtype=_TYPES[entry.type])


def read_graph(path: Path) -> bytes:
    """The bytes of an ONNX model with all its weights inside. Raises BundleError for what is not safe or not whole."""
    try:
        import onnx
        from onnx import external_data_helper
    except ImportError:
        raise MissingExtra("onnx", extra="onnx") from None
    if not path.is_file():
        raise BundleError(f"there is no {path}")
    total = path.stat().st_size
    if total > LARGEST:
        raise BundleError(f"{path} is {total:,} bytes long; at most {LARGEST:,} are read")
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own, by whichever implementation is installed
        raise BundleError(f"{path} is not a whole ONNX model: {str(error).splitlines()[0]}") from None
    if not model.graph.node:
        raise BundleError(f"{path} is not a whole ONNX model: its graph is empty")
    outer = {}
    for tensor in _tensors([*model.graph.node, *(n for f in model.functions for n in f.node)], model.graph):
        if external_data_helper.uses_external_data(tensor):
            place = external_data_helper.ExternalDataInfo(tensor).location
            outer[place] = (path.parent / place).resolve()
    for place, file in outer.items():
        if not file.is_relative_to(path.parent.resolve()) or Path(place).is_absolute():
            raise BundleError(f"{path} keeps weights in {place!r}, outside its own folder: they are not read")
        if not file.is_file():
            raise BundleError(f"{path} keeps weights in {place!r}, which is missing")
        total += file.stat().st_size
    if total > LARGEST:
        raise BundleError(f"{path} with its weights is {total:,} bytes long; at most {LARGEST:,} are read")
    if not outer:
        return content
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx checks links and bounds again
        raise BundleError(
            f"the outer weights of {path} cannot be read: {str(error).splitlines()[0]}"
        ) from None
    return model.SerializeToString()


def _tensors(nodes: Sequence[Any], graph: Any = None) -> Iterator[Any]:
    """Every tensor stored in a graph and its inner graphs."""
    if graph is not None:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer or inner.sparse_initializer:
                    yield from _tensors(inner.node, inner)


def _session(content: bytes, name: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", extra="onnx") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise BundleError(f"onnxruntime refuses {name}: {str(error).splitlines()[0]}") from None
