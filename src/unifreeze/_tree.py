"""A model as plain data: layers that own parameters and buffers. Everything but the backends works on this."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from ._rows import Rows

Status = Literal["trainable", "frozen", "buffer"]
Inference = Literal["norm", "all"]

KINDS = (
    "dense",
    "conv",
    "depthwise_conv",
    "conv_transpose",
    "embedding",
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "attention",
    "recurrent",
    "dropout",
    "activation",
    "pooling",
    "input",
    "container",
    "other",
)

# Roles of buffers that make no layer weighted: what a layer does not save tells nothing of what it has learned, and frameworks differ in what they keep so.
UNSAVED = frozenset({"rng", "constant", "cache"})
# Roles of buffers that no training step moves, so that nothing needs holding for them; a random state moves by design.
STATELESS = frozenset({"rng", "constant"})


# Not frozen=True: a tree of a large model has hundreds of thousands of these, and a frozen dataclass takes five times as long to make.
@dataclass(slots=True, eq=False)
class Parameter:
    """One array of a layer: a parameter that an optimizer would train, or a buffer that none does. Never changed once made.

    Attributes:
        path: Dotted path from the model's root, such as ``layer1.0.conv1.weight``.
        shape: The array's shape.
        dtype: The framework-neutral name of the element type, such as ``float32``.
        nbytes: Size in bytes; 0 where the framework can't tell.
        status: ``trainable``, ``frozen`` or ``buffer``.
        role: The field's name for what the array does in its layer: ``kernel``, ``bias``, ``scale``, ``embedding``, ``recurrent_kernel``;
            for a buffer ``mean``, ``variance``, ``count``, ``rng``, ``constant`` (a table of indices or a mask that is not saved with the model),
            ``cache`` (another array that is not saved); otherwise the array's own name.
        array: The framework's own array or variable. It is compared by identity only, which is how shared parameters are found.
        untrainable: Why it can't be trained (``"int8 has no gradient"``), or empty.
        rows: The frozen rows of a trainable parameter, where some of its rows are frozen.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    status: Status
    role: str
    array: object = field(repr=False)
    untrainable: str = ""
    rows: Rows | None = None

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition(".")[2]

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(slots=True, eq=False)
class Layer:
    """A node of the model's tree. Never changed once made.

    Attributes:
        path: Dotted path from the root; the root's is empty.
        kind: The field's name for what the layer does, one of ``KINDS`` where one fits.
        type: The framework's own class name, such as ``Conv2d``.
        parameters: The parameters that this layer owns itself.
        buffers: The buffers that this layer owns itself.
        children: The layers inside, in the model's order.
        inference: How this layer is held at inference behaviour now, or ``None`` when it follows the model's mode.
        output_shape: Shape of the output without computing anything, with ``None`` for a free axis; ``None`` where unknown.
        native: The framework's own layer, or ``None``. It is compared by identity only.
        lost_order: Empty, or why the order of the children is not the model's.
        hidden_state: Whether the layer may keep state that this tree does not show, as a normalisation whose statistics lie in another tree.
        stack: How many layers of the model lie in each array of this one, along an axis of their own (``nn.scan``, ``vmap``); 0 in an ordinary layer.
        auto_named: Whether the framework counted the name up by itself (``dense_3``), so that the next build of the same model may have another.
    """

    path: str
    kind: str
    type: str
    parameters: tuple[Parameter, ...] = ()
    buffers: tuple[Parameter, ...] = ()
    children: tuple[Layer, ...] = ()
    inference: Inference | None = None
    output_shape: tuple[int | None, ...] | None = None
    native: object = field(default=None, repr=False)
    lost_order: str = ""
    hidden_state: bool = False
    stack: int = 0
    auto_named: bool = False

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition(".")[2]

    @property
    def weighted(self) -> bool:
        """Whether the layer itself owns a parameter or a buffer. A random-number state alone does not count, nor does what is not saved with the model."""
        return bool(self.parameters) or any(buffer.role not in UNSAVED for buffer in self.buffers)

    def with_parts(
        self,
        parameters: tuple[Parameter, ...],
        buffers: tuple[Parameter, ...],
        children: tuple[Layer, ...],
        inference: Inference | None,
        native: object,
    ) -> Layer:
        """Returns the layer with other parts; itself if they are the same. ``dataclasses.replace`` would take five times as long."""
        same = parameters == self.parameters and buffers == self.buffers and children == self.children
        if same and inference == self.inference and native is self.native:
            return self
        return Layer(
            self.path,
            self.kind,
            self.type,
            parameters,
            buffers,
            children,
            inference,
            self.output_shape,
            native,
            self.lost_order,
            self.hidden_state,
            self.stack,
            self.auto_named,
        )

    def walk(self) -> Iterator[Layer]:
        """Yields this layer and everything below it, parents first, in the model's order."""
        pending = [self]
        while pending:
            layer = pending.pop()
            yield layer
            if layer.children:
                pending.extend(reversed(layer.children))

    def arrays(self) -> Iterator[Parameter]:
        """Yields every parameter and buffer in this subtree; a shared one at each of its paths."""
        for layer in self.walk():
            yield from layer.parameters
            yield from layer.buffers


@dataclass(frozen=True, slots=True)
class State:
    """Everything that freezing decides about a model.

    Attributes:
        frozen: Paths of the frozen parameters.
        inference: For each layer that is held at inference behaviour, how.
        rows: For each parameter of which only some rows are frozen, which.
    """

    frozen: frozenset[str] = frozenset()
    inference: Mapping[str, Inference] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)

    def differing(self, other: State) -> set[str]:
        """Paths of the parameters of which another state freezes something else."""
        rows = {path for path in self.rows.keys() | other.rows.keys() if self.rows.get(path) != other.rows.get(path)}
        return rows | (self.frozen ^ other.frozen)


def state_of(layers: list[Layer]) -> State:
    """Reads the state that the layers of a tree show."""
    parameters = [p for layer in layers for p in layer.parameters]
    return State(
        frozenset([p.path for p in parameters if p.status == "frozen"]),
        {layer.path: layer.inference for layer in layers if layer.inference is not None},
        {p.path: p.rows for p in parameters if p.rows is not None},
    )


def with_state(tree: Layer, state: State, copies: Mapping[int, object] | None = None) -> Layer:
    """Returns the tree as it reads under a state that the model itself can't carry (a pytree has no flags).

    Args:
        tree: What a backend read.
        state: The state.
        copies: To return the tree of an abstract copy of the model: what stands there for each array and each of the framework's own layers, by identity.
    """
    frozen, rows, inference = state.frozen, state.rows, state.inference
    anew = {} if copies is None else copies

    def under(one: Parameter) -> Parameter:
        path, status, some = one.path, one.status, rows.get(one.path) if rows else None
        if status != "buffer" and not one.untrainable:
            status = "frozen" if path in frozen else "trainable"
        array = anew.get(id(one.array), one.array)
        if status == one.status and array is one.array and some == one.rows:
            return one
        return Parameter(path, one.shape, one.dtype, one.nbytes, status, one.role, array, one.untrainable, some)

    done: list[Layer] = []  # the children of the next layer are its last ones, in reverse
    for layer in reversed(list(tree.walk())):
        parameters = tuple([under(one) for one in layer.parameters]) if layer.parameters else ()
        buffers = tuple([under(one) for one in layer.buffers]) if layer.buffers and anew else layer.buffers
        children: tuple[Layer, ...] = ()
        if layer.children:
            first = len(done) - len(layer.children)
            children = tuple(reversed(done[first:]))
            del done[first:]
        native = layer.native if copies is None else copies.get(id(layer.native))
        done.append(layer.with_parts(parameters, buffers, children, inference.get(layer.path), native))
    return done[0]


def natural(name: str) -> tuple[object, ...]:
    """Sorts ``Dense_2`` before ``Dense_10``.

    >>> sorted(["Dense_10", "Dense_2"], key=natural)
    ['Dense_2', 'Dense_10']
    """
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name) if part)


def unique(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Returns each array once, at the first path that reaches it."""
    every = list(parameters)
    first = {id(parameter.array): parameter for parameter in reversed(every)}
    return every if len(first) == len(every) else [parameter for parameter in every if first[id(parameter.array)] is parameter]


def wholes(tree: Layer) -> dict[str, bool]:
    """Returns for each layer whether all parameters in it are frozen; one without any goes with what it is in."""
    inside: dict[str, list[bool]] = {}
    for layer in reversed(list(tree.walk())):
        own = [parameter.status == "frozen" for parameter in layer.parameters]
        inside[layer.path] = [*([all(own)] if own else []), *(all(inside[child.path]) for child in layer.children if inside[child.path])]
    whole: dict[str, bool] = {}
    pending = [(tree, False)]
    while pending:
        layer, above = pending.pop()
        whole[layer.path] = all(inside[layer.path]) if inside[layer.path] else above
        pending.extend((child, whole[layer.path]) for child in layer.children)
    return whole
