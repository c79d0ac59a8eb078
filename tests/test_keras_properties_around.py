"""Random stories of two models that share layers: one is made around layers of the other at any moment, and both are used, frozen, undone and dropped in turns.

What trains where is told by plain dictionaries of flags, and what is computed by numpy: see the kit. All layers have the same shape, so that arrays that
change places would raise nothing.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from kits.keras import value_of
from kits.keras_chains import Key, Names, Oracle, Values, descended, elements, keys, loss, outputs
from kits.keras_eyes import drawing
from unifreeze import UnifreezeWarning, freeze, summary, unfreeze

X = np.random.default_rng(3).normal(size=(6, 3)).astype("float32")
Y = np.random.default_rng(4).normal(size=(6, 3)).astype("float32")
BACKEND = keras.backend.backend()
RATE = 0.3
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "descent": lambda: keras.optimizers.SGD(RATE),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "still": lambda: keras.optimizers.Adam(0.0),
}
COMPILED = [*OPTIMIZERS, *OPTIMIZERS, None]
KINDS = ("on top", "flat", "encoder", "cut", "own class", "sequential", "gan", "anew", "inner")
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


def dense(name: str) -> Any:
    layer = keras.layers.Dense(3, activation="tanh", name=name)
    layer.build((None, 3))
    return layer


class Around(keras.Model):
    """A model of one's own round a base, which is built when it is first used."""

    def __init__(self, base: Any, head: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.base, self.head = base, head

    def call(self, inputs: Any) -> Any:
        return self.head(self.base(inputs))


class Subject:
    """The models, and what a user does to them."""

    def __init__(self, names: Names, nested: bool, sequential: bool, eager: bool) -> None:
        self.names, self.eager, self.count = names, eager, 0
        self.layers = {name: dense(name) for name in names}
        outer = [self.layers[name] for name in names]
        if nested:
            outer = [keras.Sequential([keras.Input((3,)), *outer[:2]], name="inner"), *outer[2:]]
        self.inner = {"inner": names[:2]} if nested else {}
        self.outer, self.ends, code = outer, [], keras.Input((3,))
        if sequential:
            self.first = keras.Sequential([code, *outer], name="first")
            self.ends = [layer.output for layer in self.first.layers]
        else:
            for layer in outer:
                self.ends.append(layer(self.ends[-1] if self.ends else code))
            self.first = keras.Model(code, self.ends[-1], name="first")
        self.models = {"first": self.first}
        self.optimizers: dict[str, str] = {}
        self.freezings: list[Any] = []
        self.oracle = Oracle()
        self.oracle.enter("first", names, self.inner)
        self.compile("first", "adamw")

    # How a second model comes and goes.

    def make(self, kind: str, place: int, order: list[int]) -> None:
        """Its name, what it runs, and the models that lie inside it."""
        self.count += 1
        name, head, place = f"second{self.count}", f"h{self.count}", place % len(self.ends)
        below = {"first": self.names, **self.inner}
        shared = {
            "on top": (self.names, below),
            "own class": (self.names, below),
            "sequential": (self.names, below),
            "gan": (self.names, below),
            "flat": (self.names, self.inner),
            "encoder": (self._until(place), self.inner),
            "cut": (self._until(place), self.inner),
            "anew": (tuple(self.names[one % len(self.names)] for one in order), {}),
            "inner": (self.names[:2], {}),
        }
        chain, inside = shared[kind]
        if kind == "inner":
            name, model = "inner", self.outer[0]
        elif kind == "encoder":
            model = keras.Model(self.first.inputs, self.ends[place], name=name)
        else:
            self.layers[head] = dense(head)
            model = self._with(kind, name, self.layers[head], place, chain)
            chain = (head, *chain) if kind == "gan" else (*chain, head)
        model.run_eagerly = self.eager
        self.models = {"first": self.first, name: model}
        self.oracle.enter(name, chain, inside)

    def _with(self, kind: str, name: str, head: Any, place: int, chain: Names) -> Any:
        if kind == "own class":
            return Around(self.first, head, name=name)
        if kind == "sequential":
            return keras.Sequential([keras.Input((3,)), self.first, head], name=name)
        if kind in ("flat", "cut"):
            return keras.Model(self.first.inputs, head(self.ends[place if kind == "cut" else -1]), name=name)
        inputs = code = keras.Input((3,))
        if kind == "gan":
            return keras.Model(inputs, self.first(head(inputs)), name=name)
        for layer in [self.first] if kind == "on top" else [self.layers[one] for one in chain]:
            code = layer(code)
        return keras.Model(inputs, head(code), name=name)

    def _until(self, place: int) -> Names:
        return self.names[: place + (2 if self.inner else 1)]

    def drop(self, forget: bool) -> None:
        """With a list of Freezings that is thrown away, or one that is kept."""
        self.models = {"first": self.first}
        if forget:
            self.freezings, self.oracle.undos = [], []
        gc.collect(1)

    # What is done to either.

    def compile(self, which: str, optimizer: str) -> None:
        self.optimizers[which] = optimizer
        self.models[which].compile(OPTIMIZERS[optimizer](), "mse", run_eagerly=self.eager)

    def call(self, which: str, picked: Names | str, part: str | None, *, on: bool) -> None:
        """Layers, the whole model, or a model inside it."""
        model = self.models[which]
        inside = {"first": self.first, "inner": self.outer[0]}
        layers = None if picked == which else [inside[picked]] if isinstance(picked, str) else [self.layers[name] for name in picked]
        self.freezings.append((unfreeze if on else freeze)(model, layers=layers, params=part))
        self.oracle.call(which, picked, part, on=on)

    def undo(self, *, every: bool) -> None:
        """The last call, or all of them from the first one on: undoing out of order ends where undoing in order does."""
        count = len(self.freezings) if every else min(1, len(self.freezings))
        for _ in range(count):
            self.freezings.pop(0 if every else -1).undo()
            self.oracle.undo()

    def by_hand(self, which: str, picked: str, *, on: bool, compiles: bool) -> None:
        """By layer and by variable, since Keras on TensorFlow does nothing where the layer's flag reads so already.

        Without a compile, only models that a freeze watches obey.
        """
        self.freezings = []
        top = self.models[which] if picked == which else self.layers[picked]
        for layer in top._flatten_layers():
            layer.trainable = on
        for variable in top.variables:
            variable.trainable = on
        self.oracle.by_hand(which, picked, on=on)
        if compiles or not self.oracle.standing:
            for model in self.models:
                self.compile(model, "adamw")

    def save_and_load(self, which: str) -> None:
        model = self.models[which]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "all.weights.h5"
            model.save_weights(file)
            for variable in model.weights:
                variable.assign(variable + 1)
            model.load_weights(file, skip_mismatch=True)

    # What is seen.

    def values(self) -> Values:
        return {(name, v.name): value_of(v) for name, layer in self.layers.items() for v in layer.variables}

    def moments(self) -> dict[tuple[str, int, str], bytes]:
        """What each optimizer knows of each variable."""
        found = {}
        for which, model in self.models.items():
            optimizer = getattr(model, "optimizer", None)
            known = optimizer._trainable_variables if getattr(optimizer, "built", False) else []
            for name in ("_momentums", "_velocities"):
                slots = getattr(optimizer, name, [])
                found |= {(which, id(v), name): value_of(slot).tobytes() for v, slot in zip(known, slots, strict=False)}
        return found

    def check_flags(self) -> None:
        for which, model in self.models.items():
            if model.built:
                expected = self.oracle.trains(which)
                assert {key_of(v) for v in model.trainable_variables} == expected
                totals = summary(model).totals
                assert (totals.trainable, totals.parameters) == (elements(expected, 3), elements(keys(self.oracle.chains[which]), 3))

    def check_optimizers(self) -> None:
        """Right after a call: they keep nothing for what is frozen, and have what trains."""
        for which, model in self.models.items():
            if getattr(getattr(model, "optimizer", None), "built", False):
                assert {key_of(v) for v in model.optimizer._trainable_variables} == self.oracle.trains(which)

    def look(self, which: str, way: str) -> None:
        model, values, chain = self.models[which], self.values(), self.oracle.chains[which]
        if way == "predict":
            found = model.predict(X, batch_size=6, verbose=0)
            np.testing.assert_allclose(found, outputs(self.values(), chain, X)[-1], atol=1e-5)
        elif model.compiled:
            found = model.evaluate(X, Y, batch_size=6, verbose=0) if way == "evaluate" else model.test_on_batch(X, Y)
            np.testing.assert_allclose(found, loss(self.values(), chain, X, Y), atol=1e-5)
        assert not changed(values, self.values())

    def train(self, which: str, way: str) -> None:
        model, chain, trains, before = self.models[which], self.oracle.chains[which], self.oracle.trains(which), self.values()
        said = model.train_on_batch(X, Y) if way == "step" else model.fit(X, Y, batch_size=6, verbose=0).history["loss"][0]
        after = self.values()
        before = {key: before.get(key, value) for key, value in after.items()}
        self.compare(which, trains, before, after, descended(before, chain, (X, Y), RATE, trains))
        np.testing.assert_allclose(said, loss(before, chain, X, Y), atol=1e-5)

    def train_and(self, which: str, inside: Callable[[], None]) -> None:
        """A fit of two batches, with a call in a callback between them."""
        first = [True]

        def call(*_: object, **__: object) -> None:
            if first.pop() if first else False:
                inside()

        chain, trains, before = self.oracle.chains[which], self.oracle.trains(which), self.values()
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=call)
        self.models[which].fit(X, Y, batch_size=3, verbose=0, shuffle=False, callbacks=[callback])
        middle = descended(before, chain, (X[:3], Y[:3]), RATE, trains)
        now = self.oracle.trains(which)
        self.compare(which, trains | now, before, self.values(), descended(middle, chain, (X[3:], Y[3:]), RATE, now))

    def compare(self, which: str, trains: set[Key], before: Values, after: Values, expected: Values) -> None:
        how = self.optimizers[which]
        assert changed(before, after) == (set() if how == "still" else trains)
        if how == "descent":
            for key, value in expected.items():
                np.testing.assert_allclose(after[key], value, atol=1e-5)


def key_of(variable: Any) -> Key:
    return variable.path.split("/")[-2], variable.name


def changed(before: Values, after: Values) -> set[Key]:
    return {key for key, old in before.items() if old.tobytes() != after[key].tobytes()}


# Whom a step is about, and which layers: drawn as numbers, since what there is depends on the steps before.

MOSTLY_FIRST, MOSTLY_SECOND = (st.sampled_from([one, one, one, other]) for one, other in (("first", "second"), ("second", "first")))
PICKED = st.one_of(st.just("whole"), st.just("inside"), st.sets(st.integers(0, 4), min_size=1, max_size=3))
CALL = st.tuples(st.just("call"), MOSTLY_FIRST, PICKED, st.sampled_from([None, None, "bias", "kernel"]), st.sampled_from([False, False, True]))
HAND = st.tuples(st.just("by_hand"), MOSTLY_FIRST, st.one_of(st.just("whole"), st.integers(0, 4)), st.booleans(), st.sampled_from([True, False, False]))
MAKE = st.tuples(st.just("make"), st.sampled_from(KINDS), st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.sampled_from(COMPILED))
OTHER = st.one_of(
    st.tuples(st.just("undo"), st.booleans()),
    st.tuples(st.just("undo"), st.booleans()),
    st.tuples(st.just("compile"), MOSTLY_SECOND, st.sampled_from(list(OPTIMIZERS))),
    st.tuples(st.just("save"), MOSTLY_SECOND),
    st.tuples(st.just("drop"), st.booleans()),
)
TRAIN = st.tuples(st.just("train"), MOSTLY_SECOND, st.sampled_from(["step", "step", "fit"]))
WITHIN = st.tuples(st.just("within"), MOSTLY_SECOND, CALL)
LOOK = st.tuples(st.just("look"), MOSTLY_SECOND, st.sampled_from(["predict", "predict", "predict", "evaluate", "test_on_batch"]))


@st.composite
def stories(draw: Any) -> tuple[Names, bool, bool, list[Any]]:
    """Of changes, most of them followed by a use of either model: what was not used before a change can't have gone stale."""
    names = tuple("abcd"[: draw(st.integers(2, 4))])
    use = st.one_of(TRAIN, TRAIN, TRAIN, LOOK, LOOK, WITHIN)
    begin = [*draw(st.lists(CALL, max_size=1)), draw(MAKE), draw(TRAIN)]
    middle = draw(st.lists(st.tuples(st.one_of(CALL, CALL, HAND, OTHER), use), min_size=2, max_size=4))
    steps = [*begin, *(step for pair in middle for step in pair), draw(LOOK)]
    return names, draw(st.booleans()), draw(st.booleans()), steps


class Teller:
    """Tells a story of the subject: finds out whom a step is about, and leaves out what can't be done."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def which(self, drawn: str) -> str:
        return list(self.subject.models)[-1 if drawn == "second" else 0]

    def picked(self, which: str, drawn: Any) -> Any:
        parts, names = list(self.subject.oracle.parts[which]), sorted(set(self.subject.oracle.chains[which]))
        if drawn in ("whole", "inside"):
            return parts[0 if drawn == "whole" else min(1, len(parts) - 1)]
        return names[drawn % len(names)] if isinstance(drawn, int) else tuple(sorted({names[one % len(names)] for one in drawn}))

    def built(self, which: str) -> bool:
        return bool(self.subject.models[which].built)

    def trains(self, which: str) -> bool:
        return self.subject.models[which].compiled and bool(self.subject.oracle.trains(which))

    def make(self, kind: str, place: int, order: list[int], optimizer: str | None) -> None:
        if kind == "inner" and not self.subject.inner:
            return
        with drawing():
            self.subject.make(kind, place, order)
        if optimizer:
            self.compile("second", optimizer)

    def drop(self, forget: bool) -> None:
        self.subject.drop(forget)

    def compile(self, drawn: str, optimizer: str) -> None:
        self.subject.compile(self.which(drawn), optimizer)

    def call(self, drawn: str, picked: Any, part: str | None, on: bool) -> None:
        kept = self.subject.moments()
        if not self.built(self.which(drawn)):
            return
        self.freeze(drawn, picked, part, on)
        need_kept(kept, self.subject.moments())
        self.subject.check_optimizers()

    def freeze(self, drawn: str, picked: Any, part: str | None, on: bool) -> None:
        which = self.which(drawn)
        if self.built(which):
            self.subject.call(which, self.picked(which, picked), part, on=on)

    def undo(self, every: bool) -> None:
        kept = self.subject.moments()
        if not self.subject.freezings:
            return
        self.subject.undo(every=every)
        self.subject.check_optimizers()
        if not every:  # what leaves and comes back meanwhile has the moments of when it left
            need_kept(kept, self.subject.moments())

    def by_hand(self, drawn: str, picked: Any, on: bool, compiles: bool) -> None:
        which = self.which(drawn)
        if self.built(which):
            self.subject.by_hand(which, self.picked(which, picked), on=on, compiles=compiles)
            warnings.simplefilter("ignore")

    def save(self, drawn: str) -> None:
        which, before = self.which(drawn), self.subject.values()
        if self.built(which):
            self.subject.save_and_load(which)
            assert not changed(before, self.subject.values())

    def look(self, drawn: str, way: str) -> None:
        self.subject.look(self.which(drawn), way)

    def train(self, drawn: str, way: str) -> None:
        which = self.which(drawn)
        if self.trains(which):
            self.subject.train(which, way)

    def within(self, drawn: str, call: Any) -> None:
        """The call comes between the two steps of a fit, which holds all arrays on JAX."""
        which = self.which(drawn)
        if self.trains(which) and self.built(which):
            self.subject.train_and(which, lambda: self.freeze(*call[1:]))


def need_kept(before: dict[Any, bytes], after: dict[Any, bytes]) -> None:
    assert {one: after[one] for one in before if one in after} == {one: old for one, old in before.items() if one in after}


def play(names: Names, nested: bool, sequential: bool, story: list[Any], *, eager: bool) -> None:
    with drawing():
        subject = Subject(names, nested, sequential, eager)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", "Flags of", UnifreezeWarning)  # what unifreeze itself sets is to reach each model at once
    for verb, *what in story:
        getattr(Teller(subject), verb)(*what)
        subject.check_flags()


def run(part: int, count: int, *, eager: bool) -> None:
    @seed(part)
    @settings(max_examples=count, deadline=None, suppress_health_check=QUIET, database=None)
    @given(stories())
    def told(story: Any) -> None:
        with warnings.catch_warnings():
            play(*story, eager=eager)

    told()


# A few seconds in CI on each backend: PyTorch compiles nothing, and TensorFlow takes longest.
STEP_BY_STEP = {"tensorflow": 6, "jax": 8, "torch": 24}
COMPILED_STORIES = {"tensorflow": 1, "jax": 2, "torch": 4}


def test_random_stories_of_two_models_step_by_step() -> None:
    run(0, STEP_BY_STEP[BACKEND], eager=True)


def test_random_stories_of_two_models_compiled() -> None:
    run(1, COMPILED_STORIES[BACKEND], eager=False)


@pytest.mark.deep
@pytest.mark.parametrize("eager", [True, False], ids=["step by step", "compiled"])
@pytest.mark.parametrize("part", range(2, 6))
def test_many_random_stories_of_two_models(part: int, eager: bool) -> None:
    run(part, 100 if eager else 30, eager=eager)
