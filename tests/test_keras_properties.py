"""Random sequences of what users do, on random models, against an oracle: plain dictionaries of flags, which never ask unifreeze or Keras.

Examples are drawn from the test itself and not from the backend, so every backend is held to the same expectations for the same sequences: all agree with
the oracle, and so with each other. Most run step by step, since TensorFlow would trace a function anew after each change; some run compiled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from kits.keras_eyes import drawing, look, which_moved
from unifreeze import freeze, summary, unfreeze

X = np.random.default_rng(3).normal(size=(6, 3)).astype("float32")
Y = np.random.default_rng(4).normal(size=(6, 3)).astype("float32")
OPTIMIZERS = {"momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9), "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)}
Names = tuple[str, ...]


class Oracle:
    """Which kernel or bias trains: its own flag, under the model's. Every call notes what undo has to bring back."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.flags = {(name, part): True for name in names for part in ("kernel", "bias")}
        self.root = True
        self.undos: list[tuple[dict[Any, bool], bool]] = []

    def trains(self) -> set[tuple[str, str]]:
        return {key for key, on in self.flags.items() if on and self.root}

    def call(self, picked: Names, part: str | None, *, on: bool) -> None:
        flags, root = dict(self.flags), self.root
        if on and not self.root:
            self.flags, self.root = dict.fromkeys(self.flags, False), True
        self.flags |= {(name, one): on for name in picked for one in ("kernel", "bias") if part in (None, one)}
        if not on and part is None and picked == self.names:
            self.root = False
        changed = {key: old for key, old in flags.items() if old != self.flags[key]}
        self.undos.append((changed, root != self.root))

    def undo(self) -> None:
        changed, flipped = self.undos.pop()
        self.flags |= changed
        self.root ^= flipped

    def by_hand(self, name: str, *, on: bool) -> None:
        self.flags |= {(name, part): on for part in ("kernel", "bias")}


class Subject:
    """The model itself, and what a user does to it."""

    def __init__(self, names: Names, nested: bool, eager: bool) -> None:
        self.names, self.eager = names, eager
        layers = [keras.layers.Dense(3, activation="tanh", name=name) for name in names]
        layers = [keras.Sequential([keras.Input((3,)), *layers[:2]], name="inner"), *layers[2:]] if nested else layers
        self.model = keras.Sequential([keras.Input((3,)), *layers])
        self.freezings: list[Any] = []
        self.watched = False
        self.compile("momentum")

    def layer(self, name: str) -> Any:
        return next(one for one in self.model._flatten_layers() if one.name == name)

    def compile(self, optimizer: str) -> None:
        self.model.compile(OPTIMIZERS[optimizer](), "mse", run_eagerly=self.eager)

    def call(self, picked: Names, part: str | None, *, on: bool) -> None:
        layers = None if picked == self.names else [self.layer(name) for name in picked]
        self.freezings.append((unfreeze if on else freeze)(self.model, layers=layers, params=part))

    def by_hand(self, name: str, *, on: bool, compiles: bool) -> None:
        """By layer and by variable, since Keras on TensorFlow does nothing where the layer's flag reads so already.

        What undo means after a hand has changed the same flags is told by a test of its own. Without a compile, only a model that a freeze watches obeys.
        """
        self.watched |= bool(self.freezings)
        self.freezings = []
        self.layer(name).trainable = on
        for variable in self.layer(name).variables:
            variable.trainable = on
        if compiles or not self.watched:
            self.compile("momentum")

    def save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "all.weights.h5"
            self.model.save_weights(file)
            for variable in self.model.weights:
                variable.assign(variable + 1)
            self.model.load_weights(file, skip_mismatch=True)


def picks(names: Names) -> Any:
    return st.one_of(st.just(names), st.sets(st.sampled_from(names), min_size=1).map(lambda some: tuple(n for n in names if n in some)))


@st.composite
def stories(draw: Any) -> tuple[Names, bool, list[Any]]:
    names = tuple("abcd"[: draw(st.integers(2, 4))])
    call = st.tuples(st.sampled_from(["freeze", "unfreeze"]), picks(names), st.sampled_from([None, None, "bias", "kernel"]))
    hand = st.tuples(st.just("by hand"), st.sampled_from(names), st.booleans(), st.booleans())
    train = st.sampled_from([("step",), ("step",), ("step",), ("fit",)])
    other = st.sampled_from([("undo",), ("undo",), ("compile", "momentum"), ("compile", "adamw"), ("save",)])
    return names, draw(st.booleans()), [*draw(st.lists(st.one_of(call, call, call, call, other, train, hand, hand), min_size=3, max_size=7)), draw(train)]


def moved_in(subject: Subject, verb: str) -> set[tuple[str, str]]:
    variables = {(name, variable.name): variable for name in subject.names for variable in subject.layer(name).variables}
    before = look(variables.values())
    if verb == "step" and subject.eager:
        subject.model.train_on_batch(X, Y)
    else:
        subject.model.fit(X, Y, batch_size=6, verbose=0)
    paths = which_moved(variables.values(), before)
    return {(path.split("/")[-2], path.split("/")[-1]) for path in paths}


@pytest.mark.filterwarnings("ignore")
def play(names: Names, nested: bool, story: list[Any], *, eager: bool) -> None:
    with drawing():
        subject, oracle = Subject(names, nested, eager), Oracle(names)
    for verb, *what in story:
        if verb in ("freeze", "unfreeze"):
            subject.call(*what, on=verb == "unfreeze")
            oracle.call(*what, on=verb == "unfreeze")
        elif verb == "undo" and oracle.undos:
            subject.freezings.pop().undo()
            oracle.undo()
        elif verb == "by hand":
            oracle.undos = []
            subject.by_hand(what[0], on=what[1], compiles=what[2])
            oracle.by_hand(what[0], on=what[1])
        elif verb == "compile":
            subject.compile(what[0])
        elif verb == "save":
            before = look(subject.model.weights)
            subject.save_and_load()
            assert not which_moved(subject.model.weights, before)
        expected = oracle.trains()
        assert {(v.path.split("/")[-2], v.name) for v in subject.model.trainable_variables} == expected
        totals = summary(subject.model).totals
        assert (totals.trainable, totals.parameters) == (sum(9 if part == "kernel" else 3 for _, part in expected), 12 * len(names))
        if verb in ("step", "fit") and expected:
            assert moved_in(subject, verb) == expected


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


PARTS = {"all": 0, "tensorflow": 1, "jax": 2, "torch": 3}
# Together 360 in CI: most where a step costs least.
STORIES = {"all": 60, "tensorflow": 20, "jax": 60, "torch": 100}
IN_CI = ("all", keras.backend.backend())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", [name if name in IN_CI else pytest.param(name, marks=pytest.mark.deep) for name in PARTS])
def test_random_stories_step_by_step(part: str) -> None:
    """One part runs on every backend, and one on each alone; in the deep sessions each backend runs all of them."""

    @seed(PARTS[part])
    @settings(max_examples=STORIES[part], deadline=None, suppress_health_check=QUIET, database=None)
    @given(stories())
    def run(story: Any) -> None:
        play(*story, eager=True)

    run()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=QUIET, database=None)
@given(stories())
def test_random_stories_compiled(story: Any) -> None:
    play(*story, eager=False)


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None, suppress_health_check=QUIET, database=None)
@given(stories())
def test_many_random_stories_compiled(story: Any) -> None:
    play(*story, eager=False)
