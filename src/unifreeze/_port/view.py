"""Keras's own words on any model: layers in Keras's order with a ``trainable`` that is set by hand, as the loops of its tutorials do."""

from __future__ import annotations

from typing import Any, NoReturn

from unifreeze._freezing import Freezing
from unifreeze._manager import backend_of, read
from unifreeze._tree import Layer, Parameter
from unifreeze.errors import ArgumentError, SelectorError, near

from .board import Board, Key, Wires, key_of
from .correspondence import Correspondence, correspond

_PLAIN = (str, int, float, bool, tuple, type(None))


def keras_view(model: object, twin: object = None, *, shape: tuple[int, ...] | None = None, apply: Any = None) -> KerasView:
    """Returns a model as Keras shows one, so that loops such as ``for layer in view.layers[:249]: layer.trainable = False`` run on it as they stand.

    With a twin, the view has the twin's layers, in its order and under its names, with ``InputLayer`` and activations, so that indices mean what they mean in
    Keras. Setting ``trainable`` of a layer freezes or unfreezes the layers of ``model`` that correspond, and holds their statistics, as ``unifreeze.freeze``
    does. The twin is a pattern and is not changed; random weights will do.

    Without a twin, the view has the model's own layers, in its own order and under its own paths, those that own weights or hold no others. Nobody else
    counts such layers alike, so an index or a slice is refused there; names, kinds and loops over all work. Keras models are their own twins.

    Args:
        model: The model to freeze, of any framework. A ``Freezing`` of a pytree goes on from there.
        twin: A Keras model of the same architecture, or ``None``.
        shape: As in ``correspond``.
        apply: As in ``correspond``, for a model of JAX.

    Raises:
        CorrespondenceError: If the twin does not correspond to the model.
        ArgumentError: If the twin is no Keras model.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import keras_view
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> view = keras_view(model)
        >>> view.get_layer("0").trainable = False
        >>> view.freezing.frozen
        ('0.weight', '0.bias')
    """
    backend, tree = read(model)
    bare = model.model if isinstance(model, Freezing) else model
    known = model._fingerprints if isinstance(model, Freezing) else {}
    if twin is None:
        return _built(Board(backend, bare, tree, Wires.own(tree), known), tree, None, counted=backend.name == "keras")
    if backend_of(twin).name != "keras":
        raise ArgumentError(
            f"twin={type(twin).__name__} is no Keras model.\n  It lends its layers' names and order; correspond(…) and port(…) go between any two."
        )
    found = correspond(twin, bare, shape=shape, apply=apply)
    names = backend_of(twin).layers(twin)
    return _built(Board(backend, bare, tree, Wires.along(found, names, tree), known), names, found, counted=True)


class LayerView:
    """A layer as Keras shows it.

    It passes for a layer of its class (``isinstance(layer, keras.layers.BatchNormalization)``), knows its ``name``, and takes ``trainable``, and nothing else.

    Attributes:
        name: The layer's name.
    """

    name: str
    _board: Board
    _node: Layer
    _known: dict[Key, LayerView]
    _counted: bool

    def __init__(self, board: Board, node: Layer, known: dict[Key, LayerView], *, name: str, counted: bool) -> None:
        vars(self).update(name=name, _board=board, _node=node, _known=known, _counted=counted)

    @property
    def trainable(self) -> bool:
        """Whether the layer trains. Setting it freezes or unfreezes the layer with everything inside, at once.

        Layers that no graph can tell apart, and those that the model keeps in one parameter, are frozen once all of them are set; until then it reads True.
        """
        return bool(self._board.trains(key_of(self._node)))

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._board.turn(dict.fromkeys(key_of(node) for node in self._node.walk()), on=bool(value))

    @property
    def layers(self) -> list[LayerView]:
        """The layers inside, as Keras lists them."""
        if not self._node.children:
            raise AttributeError(f"{self.name} ({self._node.type}) has no layers inside.")
        return _Listed(self._listed()) if self._counted else _Uncounted(self._listed())

    def get_layer(self, name: str | None = None, index: int | None = None) -> LayerView:
        """Returns the layer of this name, or at this index.

        Raises:
            ValueError: If there is none.
        """
        if index is not None:
            return self.layers[index]
        found = self._listed() if self._counted else [view for view in self._known.values() if view is not self]
        for layer in found:
            if layer.name == name:
                return layer
        raise ValueError(f"No such layer: {name!r}.\n  {near(str(name), [layer.name for layer in found])}".rstrip())

    @property
    def weights(self) -> list[Any]:
        """The model's own arrays that correspond to the layer's, parameters and statistics, each once."""
        return [one.array for one in self._arrays()]

    @property
    def trainable_weights(self) -> list[Any]:
        """Those that train."""
        return [one.array for one in self._arrays() if one.status == "trainable"]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """Those that are frozen, and statistics."""
        return [one.array for one in self._arrays() if one.status != "trainable"]

    def count_params(self) -> int:
        """The number of elements of ``weights``."""
        return sum(one.size for one in self._arrays())

    def _arrays(self) -> list[Parameter]:
        return self._board.arrays(key_of(node) for node in self._node.walk())

    def _listed(self) -> list[LayerView]:
        native: Any = self._node.native
        if self._counted and native is not None and isinstance(getattr(native, "layers", None), list):
            return [self._known[id(layer)] for layer in native.layers]
        if self._counted:
            return [self._known[key_of(child)] for child in self._node.children]
        return [self._known[key_of(node)] for node in self._node.walk() if node is not self._node and (node.weighted or not node.children)]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        native = vars(self)["_node"].native
        return LayerView if native is None or isinstance(native, type) else type(native)

    def __setattr__(self, name: str, value: object) -> None:
        if name != "trainable":
            raise AttributeError(f"A layer of a view takes trainable alone, not {name!r}.\n  {near(name, ['trainable'])}".rstrip())
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        found = None if name.startswith("_") else getattr(self._node.native, name, None)
        if found is not None and id(found) in self._known:
            return self._known[id(found)]
        if found is not None and isinstance(found, _PLAIN):
            return found
        raise AttributeError(f"A view of {vars(self)['name']} has no {name!r}: it freezes and tells, and the model itself does the rest.")

    def __repr__(self) -> str:
        return f"<view of {self.name} ({self._node.type}), trainable={self.trainable}>"


class KerasView(LayerView):
    """A model as Keras shows it; see ``keras_view``.

    Attributes:
        model: The model that is frozen.
        correspondence: How the twin's layers were found, or ``None``.
    """

    model: Any
    correspondence: Correspondence | None

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return KerasView

    @property
    def trainable(self) -> bool:
        """The flag of the model itself. Setting it sets every layer; while it is down nothing trains, whatever is set inside, as in Keras."""
        return not self._board.masked

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._board.turn(dict.fromkeys(key_of(node) for node in self._node.walk()), on=bool(value), whole=True)

    @property
    def freezing(self) -> Freezing:
        """The ``Freezing`` of the model as it is now, which verifies, sums up, and serves the training code. ``undo`` takes back all that the view has set.

        Raises:
            CorrespondenceError: If the layers set so far part some that can only be frozen together.
        """
        return self._board.freezing()

    def __repr__(self) -> str:
        frozen = sum(not layer.trainable for layer in self._listed())
        return f"<Keras view of {self._board.label}: {frozen} of {len(self._listed())} layers are not trainable>"


class _Listed(list[LayerView]):
    """A list that shows what a typing slip did: Keras's own list takes any assignment silently."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"A list of layers has no {name!r}.\n  for layer in view.layers: layer.trainable = False sets each of them.")


class _Uncounted(_Listed):
    """Layers that nobody else counts alike."""

    def __getitem__(self, index: Any) -> NoReturn:
        raise SelectorError(
            f"layers[{index!r}] counts layers, and Keras counts others: its InputLayers and activations have a place of their own.\n"
            "  Give a Keras model of the same architecture, keras_view(model, twin=keras_model), and indices mean what they mean there;\n"
            "  or pick by name, view.get_layer(name), or with freeze(model, first(2)), which counts weighted layers in every framework."
        )


def _built(board: Board, tree: Layer, found: Correspondence | None, *, counted: bool) -> KerasView:
    known: dict[Key, LayerView] = {}
    for node in tree.walk():
        if node is not tree:
            name = str(getattr(node.native, "name", node.name)) if counted else node.path
            known.setdefault(key_of(node), LayerView(board, node, known, name=name, counted=counted))
    view = KerasView(board, tree, known, name=str(getattr(tree.native, "name", tree.type)), counted=counted)
    vars(view).update(model=board.model, correspondence=found)
    return view
