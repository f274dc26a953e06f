"""The integer form of an exported graph: most linear layers multiply 8-bit integers, everything else stays fp32.

Weights have a scale for each column. Activations have one for each token, computed from that token alone, so that no
passage of a batch moves another's score, which ONNX Runtime's dynamic quantization (one scale for the whole batch)
cannot promise. A token's few large values take the scale away from all its others; two things answer that:

- Channels that are large everywhere hand their size to the weights before rounding (Xiao et al., "SmoothQuant", 2022,
  https://arxiv.org/abs/2211.10438, with the largest values seen on some pairs). Other pairs than those seen lose little
  by it, because a token's scale is its own.
- Layers with more rows than columns, those behind the activation function, stay fp32: their inputs have the longest
  tails. They are a third of the work, and most of the error was theirs.

What was tried beside it, with figures: docs/experiments.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_RUNTIME = "com.microsoft"
_SMALLEST = 32
"""Layers with fewer rows or columns, such as the head, stay fp32: they cost nothing, and the score is theirs."""


def write_int8(source: Path, target: Path, batches: Sequence[Mapping[str, np.ndarray]]) -> int:
    """Writes the integer form of a graph beside it, and returns how many linear layers it has.

    Args:
        source: an fp32 graph as torch.onnx.export writes it.
        target: file to write.
        batches: inputs of the graph, without padding, on which channels are looked at.
    """
    import onnx

    model = onnx.load(str(source))
    graph = _Graph(model.graph)
    layers = graph.linear_layers()
    seen = _largest(source, list(layers), batches)
    for number, (name, products) in enumerate(layers.items()):
        _quantize(graph, f"int8_{number}", name, products, seen[name])
    graph.finish()
    if not any(entry.domain == _RUNTIME for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_RUNTIME, 1))
    onnx.save(model, str(target))
    return sum(map(len, layers.values()))


class _Graph:
    """A graph that is being rewritten: its constants by name, and nodes put before others."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {output: node for node in graph.node for output in node.output}
        self._before: dict[int, list[Any]] = {}
        self._gone: set[int] = set()
        self._new: list[Any] = []

    def linear_layers(self) -> dict[str, list[Any]]:
        """Name of an activation -> the MatMul nodes that multiply it by a constant matrix."""
        found: dict[str, list[Any]] = {}
        for node in self.graph.node:
            rows, columns = self.constants[node.input[1]].dims if self._is_linear(node) else (0, 0)
            if _SMALLEST <= rows <= columns:
                found.setdefault(node.input[0], []).append(node)
        return found

    def _is_linear(self, node: Any) -> bool:
        if node.op_type != "MatMul" or node.input[0] in self.constants:
            return False
        return node.input[1] in self.constants and len(self.constants[node.input[1]].dims) == 2

    def array(self, name: str) -> np.ndarray:
        """A constant, in fp32."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name]).astype(np.float32)

    def constant(self, name: str, value: Any) -> str:
        """Adds a constant and returns its name."""
        from onnx import numpy_helper

        self._new.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def insert(
        self, node: Any, kind: str, inputs: Sequence[str], output: str, domain: str = "", **settings: Any
    ) -> str:
        """Adds a node before another one and returns the name of its output."""
        from onnx import helper

        self._before.setdefault(id(node), []).append(
            helper.make_node(kind, list(inputs), [output], output, domain=domain, **settings)
        )
        return output

    def remove(self, node: Any) -> None:
        """Leaves out a node whose output another one has taken over."""
        self._gone.add(id(node))

    def finish(self) -> None:
        """Puts everything in place, and drops constants that nothing uses any more."""
        nodes = []
        for node in self.graph.node:
            nodes += self._before.get(id(node), [])
            if id(node) not in self._gone:
                nodes.append(node)
        used = {name for node in nodes for name in node.input} | {output.name for output in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        copies = [type(item).FromString(item.SerializeToString()) for item in [*nodes]]
        del self.graph.initializer[:], self.graph.node[:]
        self.graph.initializer.extend([*kept, *self._new])
        self.graph.node.extend(copies)


def _largest(source: Path, names: Sequence[str], batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The largest absolute value of each channel of named activations, over all tokens of the batches."""
    import onnx
    import onnxruntime

    model = onnx.load(str(source), load_external_data=False)
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    probe = source.with_name("probe.onnx")  # beside the weights, should they stand in a file of their own
    onnx.save(model, str(probe))
    found: dict[str, np.ndarray] = {}
    try:
        session = onnxruntime.InferenceSession(str(probe), providers=["CPUExecutionProvider"])
        for batch in batches if names else ():
            outputs: list[Any] = list(session.run(list(names), dict(batch)))
            for name, values in zip(names, outputs, strict=True):
                largest = np.abs(values).reshape(-1, values.shape[-1]).max(0)
                found[name] = np.maximum(found.get(name, 0), largest)
    finally:
        probe.unlink()
    return found


def _quantize(graph: _Graph, prefix: str, name: str, products: Sequence[Any], largest: np.ndarray) -> None:
    """Rewrites the linear layers of one activation, which is rounded once for all of them."""
    weights = [graph.array(node.input[1]) for node in products]
    share = _share(largest, weights)
    weights = [weight * share[:, None] for weight in weights]
    scale, rounded, zero = _rounded(graph, prefix, products[0], name, share)
    for number, (node, weight) in enumerate(zip(products, weights, strict=True)):
        layer = f"{prefix}_{number}"
        columns = np.maximum(np.abs(weight).max(0) / 127, np.float32(1e-12))
        integers = np.round(weight / columns).astype(np.int8)
        one = graph.constant(f"{layer}_one", np.float32(1))
        inputs = [rounded, graph.constant(f"{layer}_weight", integers), one]
        inputs += [graph.constant(f"{layer}_columns", columns), zero]
        product = graph.insert(node, "MatMulIntegerToFloat", inputs, f"{layer}_product", _RUNTIME)
        graph.insert(node, "Mul", [product, scale], node.output[0])
        graph.remove(node)


def _share(largest: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """What each channel of an activation is divided by, and its row of the weights multiplied with: the square root of
    the ratio of their largest values."""
    activation = np.maximum(largest, 1e-5)
    weight = np.maximum(np.max([np.abs(w).max(1) for w in weights], axis=0), 1e-5)
    share = np.sqrt(activation / weight)
    return (share / share.mean()).astype(np.float32)


def _rounded(graph: _Graph, prefix: str, before: Any, name: str, share: np.ndarray) -> tuple[str, str, str]:
    """Names of the tokens' scales, of the rounded activation and of its zero point."""

    def step(kind: str, inputs: Sequence[str], result: str, **settings: Any) -> str:
        return graph.insert(before, kind, inputs, f"{prefix}_{result}", **settings)

    def constant(what: str, value: Any) -> str:
        return graph.constant(f"{prefix}_{what}", value)

    name = step("Mul", [name, constant("share", 1 / share)], "shared")
    size = step("Abs", [name], "size")
    largest = step("ReduceMax", [size, constant("axis", np.array([-1], np.int64))], "largest", keepdims=1)
    scale = step("Mul", [largest, constant("levels", np.float32(1 / 127))], "step")
    scale = step("Max", [scale, constant("least", np.float32(1e-12))], "scale")  # a row of zeros
    steps = step("Div", [name, scale], "steps")
    zero = constant("zero", np.uint8(128))
    return scale, step("QuantizeLinear", [steps, constant("unit", np.float32(1)), zero], "rounded"), zero
