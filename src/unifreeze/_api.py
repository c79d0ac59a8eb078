"""The verbs."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from ._backend import Backend, Request
from ._freezing import Freezing, bring_about, label_of, prints_of
from ._manager import read as _read
from ._recipe import Recipe
from ._record import Record, is_record
from ._recording import wish_for
from ._resolve import resolve
from ._rows import Rows
from ._summary import Summary
from ._summary.make import summarise
from ._summary.table import read_by
from ._summary.wanted import Wanted
from ._told import Told, call_text
from ._tree import Layer, Parameter, State
from ._undisturbed import undisturbed
from ._verify import fingerprint
from ._wish import Held, Wish
from .errors import ArgumentError, BackendError, FrozenMovedError, SelectorError, UnifreezeWarning, UntrainableError, near

P = ParamSpec("P")
R = TypeVar("R")


def _checked(verb: Callable[P, R]) -> Callable[P, R]:
    """Names the keyword that was meant when an unknown one is given."""
    signature = inspect.signature(verb)

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for unknown in kwargs.keys() - signature.parameters.keys():
            known = list(signature.parameters)
            raise ArgumentError(f"{verb.__name__}() has no argument {unknown!r}.\n  it has: {', '.join(known)}\n  {near(unknown, known)}".rstrip())
        with undisturbed():
            return verb(*args, **kwargs)

    return call


@_checked
def freeze(model: object, layers: object = None, *, params: object = None, rows: object = None, inference: Held = "norm") -> Freezing:
    """Freezes layers: nothing in them moves any more, whatever the training code does.

    A freeze adds to what is frozen already. The call resolves everything first and changes the model only then; if it raises, nothing has changed.

    Args:
        model: A model of any framework that has a backend, or an earlier ``Freezing``.
        layers: Which layers: a selector, a text (a glob over paths, or the text form of a selector), one of the framework's own layers or classes, or a
            list of these. ``None`` is the whole model.
        params: Narrows to some parameters of these layers: a role or a glob (``"bias"``, ``"*.weight"``), a function of ``Parameter``, arrays, or a list.
        rows: Narrows to some rows (indices of axis 0) of these parameters: a slice, a range, or a list or array of numbers, negative ones from the end. The
            other rows train: new tokens, say, while the old ones stay. Such a parameter is still ``trainable``; ``Freezing.rows`` tells its frozen rows.
        inference: What else is kept still in layers that are frozen whole. ``"norm"``: their statistics and other buffers, and a normalisation layer
            computes as at inference; dropout stays on. ``"all"``: they run as at inference altogether. ``"none"``: only parameters are frozen.

    Returns:
        A ``Freezing``, which undoes, verifies, summarises, and serves the training code.

    Raises:
        NothingSelectedError: If the selector, or a part of it, picks nothing.
        ConflictError: If a parameter is shared with a layer that the selector leaves out by name.
        UnknownModelError: If no backend speaks for the model.
        SelectorError: If ``layers``, ``params`` or ``rows`` can't be understood, or ``rows`` go past the end of a parameter.
        BackendError: If the backend does not know rows, or can't hold those of a parameter.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import freeze
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> freeze(model, layers="0")
        <Freezing of Sequential (torch): 2 of 4 parameters frozen, 2 changed by this call>
    """
    return _set(model, layers, params, rows, inference, frozen=True)


@_checked
def unfreeze(model: object, layers: object = None, *, params: object = None, rows: object = None) -> Freezing:
    """Lets layers train again, with their statistics and their mode; with ``params=``, lets only these parameters train and nothing else.

    ``freeze(...).undo()`` restores what was there before; this makes trainable whatever it picks, also what was frozen by hand.

    Args:
        model: As in ``freeze``.
        layers: As in ``freeze``.
        params: As in ``freeze``.
        rows: As in ``freeze``: lets only these rows train. Of a parameter that was frozen whole, the others stay frozen.

    Returns:
        A ``Freezing`` that tells how things stand.

    Raises:
        NothingSelectedError: If the selector, or a part of it, picks nothing.
        ConflictError: If a parameter is shared with a frozen layer that the selector leaves out by name.
        UntrainableError: If none of the picked parameters can be trained.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import freeze, unfreeze
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> f = freeze(model)
        >>> unfreeze(model, params="bias").trainable
        ('0.bias', '1.bias')
    """
    return _set(model, layers, params, rows, "none", frozen=False)


@_checked
def apply(model: object, recipe: Recipe | Record | Mapping[str, object] | str | os.PathLike[str], *, values: bool = True) -> Freezing:
    """Makes the state of the model exactly what a recipe or a record says: whatever it does not freeze is trainable afterwards.

    Args:
        model: As in ``freeze``.
        recipe: A ``Recipe`` or a ``Record``, its dictionary form, its JSON text (a recipe also YAML), or the ``Path`` of a file; a record may stand in the
            metadata of a ``.safetensors`` file.
        values: Whether the weights must be those that were frozen, where a record was taken with ``values=True``. Load the weights first.

    Returns:
        A ``Freezing`` for the whole recipe; ``undo`` takes all of it back.

    Raises:
        RecipeError: If the recipe can't be read, or a record is of another architecture.
        FrozenMovedError: If the frozen weights are not those that were recorded.
        NothingSelectedError: If a step picks nothing in this model; the message names the step.
        ConflictError: If two layers share a parameter and the recipe gives them different statuses.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import apply
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> apply(model, {"steps": [{"freeze": "~last:1"}]}).frozen
        ('0.weight', '0.bias')
    """
    backend, tree = _read(model)
    label = label_of(tree, backend)
    if is_record(recipe):
        wish = Wish(tree, label)
        read = Record.read(recipe)  # type: ignore[arg-type]
        request = read.request(tree, label)
        _need_rows(backend, tree, request)
        if values:
            _need_values(backend, model, tree, read)
        wish.picked = {layer.path for layer in wish.nodes if any(parameter.path in request.state.frozen for parameter in layer.parameters)}
        wish.told = [Told("apply(a record)", True, request.state.frozen, request.state.inference)]
        return _bring_about(backend, model, wish, request, knowingly=True)
    told = Recipe.read(recipe)  # type: ignore[arg-type]
    steps = told.steps
    wish = wish_for(steps, tree, label)
    never = frozenset(parameter.path for layer in wish.nodes for parameter in layer.parameters if parameter.untrainable)
    if told.phases:
        _warn(
            f"The recipe has {len(told.phases)} phases; apply brings about the first state alone.\n  Apply the steps of a phase yourself when its time comes."
        )
    knowingly = any(step.layers == "**" and step.params is None for step in steps)
    return _bring_about(backend, model, wish, wish.request(State(frozen=never), exact=True), knowingly=knowingly)


def _need_rows(backend: Backend, tree: Layer, request: Request) -> None:
    """Lets the backend object to rows before anything changes."""
    for parameter in tree.arrays() if request.state.rows else ():
        if parameter.path in request.state.rows:
            backend.take(parameter.array, request.state.rows[parameter.path])


def _need_values(backend: Backend, model: object, tree: Layer, read: Record) -> None:
    """Raises unless the weights are those that the record knows, if it knows any."""
    label, known = label_of(tree, backend), model._fingerprints if isinstance(model, Freezing) and not backend.in_place else {}
    wrong = list(read.differing(tree, label, lambda array, rows: known.get(array.path) or fingerprint(backend, array.array, rows)))
    if wrong:
        counted = f"one array of {label} differs" if len(wrong) == 1 else f"{len(wrong)} arrays of {label} differ"
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise FrozenMovedError(
            f"These are not the weights that were frozen: {counted} from the record.\n  {shown}\n"
            "  Load the weights that belong to the record first; or apply(model, record, values=False) to freeze whatever is there."
        )


@_checked
def layers(model: object, layers: object = None) -> tuple[Layer, ...]:
    """Returns the weighted layers that a selector picks, in the model's order, and changes nothing: a look before a freeze.

    Args:
        model: As in ``freeze``.
        layers: As in ``freeze``.

    Raises:
        NothingSelectedError: If the selector, or a part of it, picks nothing.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> [(layer.path, layer.kind) for layer in layers(model, "~first:1")]
        [('2', 'dense')]
    """
    backend, tree = _read(model)
    picked = resolve(layers, tree, label_of(tree, backend)).layers
    return tuple(layer for layer in tree.walk() if layer.weighted and layer.path in picked)


@_checked
def record(model: object, *, values: bool = False) -> Record:
    """Returns what is frozen in the model now, as a record to keep beside a saved model. ``apply`` brings it about in the same architecture.

    Args:
        model: As in ``freeze``. Of a JAX pytree the ``Freezing``, for the tree does not carry it.
        values: Also keeps a digest of each array that shall not move, so that ``apply`` can tell whether a loaded model has the weights that were frozen. For
            a pytree these are the values that its ``Freezing`` was made with.

    Returns:
        A ``Record``; ``save`` it to a file beside the weights, and give ``apply`` the file's ``Path``.

    Raises:
        BackendError: If ``values`` are asked for and some are not known.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import apply, freeze, record
        >>> build = lambda: torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = build()
        >>> f = freeze(model, layers="0")
        >>> apply(build(), record(model).to_json()).frozen
        ('0.weight', '0.bias')
    """
    backend, tree = _read(model)
    label, prints = label_of(tree, backend), _prints(backend, model, tree) if values else {}
    blank = next((path for path, value in prints.items() if value is None), None)
    if blank is not None:
        raise BackendError(f"The values of {blank} of {label} are not known.\n  Take the record of a model that has its weights, or leave out values=True.")
    return Record.of(tree, label, backend.notes(model.model if isinstance(model, Freezing) else model, tree), prints)


def _prints(backend: Backend, model: object, tree: Layer) -> Mapping[str, Hashable]:
    return model._fingerprints if isinstance(model, Freezing) and not backend.in_place else prints_of(backend, tree)


@_checked
def summary(
    model: object,
    *,
    depth: int | None = None,
    layers: object = None,
    columns: Sequence[str] | None = None,
    sort: str = "model",
    collapse: bool = False,
    inputs: object = None,
    input_shape: object = None,
    call: object = None,
    optimizer: str | None = None,
) -> Summary:
    """Returns a table of the model's layers, their parameters and status, and true totals. Nothing is computed and nothing is changed.

    Args:
        model: As in ``freeze``.
        depth: Shows layers down to this depth; the totals are always of the whole model.
        layers: Shows the layers that a selector picks; as in ``freeze``.
        columns: What to show, of ``layer`` (the name, indented), ``path``, ``type``, ``kind``, ``output_shape``, ``parameters``, ``buffers``, ``bytes``,
            ``dtype``, ``status``, ``statistics`` (whether a training step moves them), ``mode`` (how a layer is held, or its own mode) and ``why`` (which
            call froze it, in its own words).
        sort: ``"model"``, the model's order; or by ``"path"``, ``"type"``, ``"kind"``, ``"status"``, or by ``"parameters"``, ``"buffers"``, ``"bytes"``,
            the largest first.
        collapse: Shows neighbours as one row (``0–31``, ``each …``) whose names count up and that are equal: in type, in the names, shapes, types and
            statuses of their arrays, and in how they are held, all the way down.
        inputs: Sample inputs, for output shapes: an array, a tuple of positional arguments, or a dict of named ones. Only shapes and types are read;
            abstract arrays (meta tensors, ``jax.ShapeDtypeStruct``, ``keras.KerasTensor``) do as well. The model runs in inference on shapes alone.
        input_shape: Instead of ``inputs``, the shape of one input with its batch axis, ``None`` for an open axis; several in a list, named ones in a dict.
        call: For the variables of a linen module, which can't be called: the module.
        optimizer: An optimizer's name in small letters, such as ``"adamw"``: adds what training will need besides, gradients and the optimizer's state.

    Returns:
        A ``Summary``; ``print`` it, ``show`` it in colour, compare it (``diff``), or take ``to_dict()``, ``to_json()``, ``to_markdown()``, ``to_pandas()``,
        ``to_html(path)``.

    Raises:
        NothingSelectedError: If ``layers`` picks nothing.
        ArgumentError: If there is no such column, order or optimizer.
        BackendError: If output shapes can't be told; the message says why.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch")
        >>> from unifreeze import freeze, summary
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 32), torch.nn.Linear(32, 10))
        >>> f = freeze(model, layers="0")
        >>> totals = summary(model).totals
        >>> totals.parameters, totals.trainable, totals.frozen
        (3562, 330, 3232)
        >>> [row.more["why"] for row in summary(model, columns=["path", "why"]).rows]
        ['', "freeze(layers='0')", '']
    """
    wanted = Wanted(
        depth=depth,
        layers=layers,
        columns=columns,
        sort=sort,
        collapse=collapse,
        inputs=inputs,
        input_shape=input_shape,
        call=call,
        optimizer=optimizer,
    )
    backend, tree = _read(model)
    subject, told = (model.model, model._told) if isinstance(model, Freezing) else (model, ())
    return summarise(backend, subject, tree, label_of(tree, backend), wanted, told=[one for steps in told for one in steps])


read_by(summary)


@_checked
def plot(model: object, *, axes: Any = None, depth: int | None = None) -> Any:
    """Draws an icicle of the parameters by layer, coloured by status, with matplotlib: ``pip install 'unifreeze[plot]'``.

    Args:
        model: As in ``freeze``.
        axes: Matplotlib's axes to draw on; new ones if left out.
        depth: Draws layers down to this depth.

    Returns:
        The axes.

    Raises:
        BackendError: If matplotlib is not installed.

    Example:
        >>> import pytest; torch = pytest.importorskip("torch"); _ = pytest.importorskip("matplotlib").use("agg")
        >>> from unifreeze import plot
        >>> plot(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))).get_xlabel()
        'share of the parameters'
    """
    return summary(model, depth=depth).plot(axes)


def _set(model: object, layers: object, params: object, rows: object, inference: Held, *, frozen: bool) -> Freezing:
    if inference not in ("norm", "all", "none"):
        raise ArgumentError(f"inference={inference!r} is unknown.\n  it is 'norm', 'all' or 'none'\n  {near(str(inference), ['norm', 'all', 'none'])}".rstrip())
    backend, tree = _read(model)
    label = label_of(tree, backend)
    if not frozen and not backend.in_place and not isinstance(model, Freezing):
        raise ArgumentError(f"{label} carries no state, so nothing is frozen in it.\n  Give the Freezing: unfreeze(freezing, …), where freezing = freeze(…).")
    wish = Wish(tree, label)
    text = call_text("freeze" if frozen else "unfreeze", layers=layers, params=params, rows=rows)
    within = None if rows is None else functools.partial(_rows, backend, rows)
    wish.add(resolve(layers, tree, label), params, inference, frozen=frozen, within=within, text=text)
    return _bring_about(backend, model, wish, wish.request(wish.before), knowingly=not frozen or (layers is None and params is None))


def _rows(backend: Backend, rows: object, parameter: Parameter) -> Rows:
    """The rows that are meant of this parameter, once its backend has agreed to them."""
    if parameter.untrainable:
        raise UntrainableError(
            f"{parameter.path} can't be trained, so no row of it can, either.\n  {parameter.untrainable}\n  It stays as it is; leave it out of layers=."
        )
    if not parameter.shape:
        raise SelectorError(f"{parameter.path} is a single number and has no rows.\n  Leave it out of layers= or params=, or freeze it whole.")
    read = Rows.read(rows, parameter.shape[0], parameter.path)
    backend.take(parameter.array, read)
    return read


def _bring_about(backend: Backend, model: object, wish: Wish, request: Request, *, knowingly: bool) -> Freezing:
    # Warned before anything changes: where warnings are errors, a call that raises must have changed nothing.
    every = [] if knowingly else [parameter.path for layer in wish.nodes for parameter in layer.parameters]
    if every and all(path in request.state.frozen for path in every) and not wish.before.frozen.issuperset(every):
        _warn(f"Every parameter of {wish.label} is frozen now; nothing will train.\n  unfreeze(model, layers=…) lets a part of it train.")
    if wish.skipped:
        shown = ", ".join(f"{path} ({why})" for path, why in list(wish.skipped.items())[:5])
        _warn(f"{len(wish.skipped)} parameters can't be trained and are left as they are: {shown}")
    picked = [layer.path for layer in wish.nodes if layer.path in wish.picked and layer.weighted]
    subject, known = (model.model, model._fingerprints) if isinstance(model, Freezing) else (model, {})
    told = (*(model._told if isinstance(model, Freezing) else ()), tuple(wish.told))
    return bring_about(backend, subject, request, picked=picked, skipped=wish.skipped, known=known, told=told, before=wish.before)


def _warn(message: str) -> None:
    depth = 2
    frame = inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").startswith("unifreeze."):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, UnifreezeWarning, stacklevel=depth - 1)
