"""The conformance suite: what *frozen* means, checked on real training steps and real arrays, the same for every backend.

Checks are named after the points of the contract. A subclass supplies a kit and nothing else: a check can't be overridden, and a gap is declared in the
kit, with its reason, and turns red when it heals.
"""

from __future__ import annotations

import inspect
import itertools
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from types import FunctionType
from typing import Any, ClassVar

import numpy as np
import pytest

import unifreeze
from unifreeze import Freezing, UnifreezeError, UnifreezeWarning, freeze, layers, summary, unfreeze
from unifreeze import select as s
from unifreeze._manager import read as _read
from unifreeze.errors import ArgumentError, ConflictError, FrozenMovedError, NothingSelectedError, SelectorError, UnknownModelError

from .kit import RATE, REFERENCE, TIED, Arrays, Kit, Trainer

EVERY = tuple(spec.path for spec in REFERENCE)
FROZEN = ("stem.conv", "stem.norm", "body.layer_2", "body.bn")

#: One table of selectors and the weighted layers that each must pick, in every framework. A function makes the selector from the kit and the model.
SELECTIONS: dict[str, tuple[object, tuple[str, ...]]] = {
    "None": (None, EVERY),
    "everything": (s.everything, EVERY),
    "text **": ("**", EVERY),
    "container": ("stem", EVERY[:2]),
    "text stem.*": ("stem.*", EVERY[:2]),
    "whole components": ("body.layer_1", ("body.layer_1",)),
    "text body.layer_*": ("body.layer_*", ("body.layer_1", "body.layer_2", "body.layer_10")),
    "text **.norm": ("**.norm", ("stem.norm", "body.norm")),
    "first": (s.first(2), EVERY[:2]),
    "last": (s.last(1), EVERY[-1:]),
    "nth": (s.nth(0, -1), (EVERY[0], EVERY[-1])),
    "natural order": (s.first(5), EVERY[:5]),
    "before": (s.before("body.layer_10"), EVERY[:5]),
    "before a container": (s.before("body"), EVERY[:2]),
    "after": (s.after("body.layer_2"), EVERY[5:]),
    "upto": (s.upto("body.layer_1"), EVERY[:3]),
    "between": (s.between("stem", "body.layer_10"), EVERY[2:5]),
    "name": (s.name("norm"), ("stem.norm", "body.norm")),
    "regex": (s.regex(r"body\.layer_\d"), ("body.layer_1", "body.layer_2")),
    "kind": (s.kind("dense"), ("body.layer_1", "body.layer_2", "body.layer_10", "head")),
    "kind by glob": (s.kind("*_norm"), ("stem.norm", "body.norm", "body.bn")),
    "type": (lambda kit, _: next(iter(kit.types.values())) if kit.types else s.kind(_a_kind(kit)), ()),
    "type by name": (lambda kit, _: s.type(next(iter(kit.types.values())).__name__) if kit.types else s.kind(_a_kind(kit)), ()),
    "where": (s.where(lambda layer: layer.kind == "conv"), ("stem.conv",)),
    "or": (s.first(1) | "head", (EVERY[0], EVERY[-1])),
    "and": (s.kind("batch_norm") & "body.**", ("body.bn",)),
    "minus": (s.kind("dense") - "head", ("body.layer_1", "body.layer_2", "body.layer_10")),
    "all but": (~s.last(1), EVERY[:-1]),
    "list": (["stem", s.last(1)], (*EVERY[:2], EVERY[-1])),
    "an object": (lambda kit, model: kit.part(model, "stem"), EVERY[:2]),
    "objects": (lambda kit, model: [kit.part(model, "stem.conv"), kit.part(model, "head")], (EVERY[0], EVERY[-1])),
    "text first:2 | kind:batch_norm": ("first:2 | kind:batch_norm", (*EVERY[:2], "body.bn")),
    "text ~(stem | head) - kind:*_norm": ("~(stem | head) - kind:*_norm", ("body.layer_1", "body.layer_2", "body.layer_10")),
    "text before:body.layer_2 & re:body.*": ("before:body.layer_2 & re:body.*", ("body.layer_1", "body.norm")),
}

#: Selectors that must be refused, with a word that the error must hold.
REFUSED: dict[str, tuple[object, type[UnifreezeError], str]] = {
    "integer": (2, SelectorError, "first(2)"),
    "slice": (slice(2), SelectorError, "weighted layers"),
    "true": (True, SelectorError, "weighted layers"),
    "empty list": ([], SelectorError, "selects nothing"),
    "misspelt glob": ("steem.*", NothingSelectedError, "'stem.*'"),
    "misspelt part": (s.everything - "hed", NothingSelectedError, "'head'"),
    "name without its path": ("layer_1", NothingSelectedError, "**.layer_1"),
    "unknown kind": (s.kind("dens"), NothingSelectedError, "'dense'"),
    "absent kind": (s.kind("recurrent"), NothingSelectedError, "batch_norm"),
    "too many": (s.first(99), NothingSelectedError, "8"),
    "nothing before": (s.before("stem.conv"), NothingSelectedError, "no weighted layer there"),
    "empty meeting": (s.kind("conv") & "head", NothingSelectedError, "head"),
    "all but everything": (~s.everything, NothingSelectedError, "whole model"),
    "a parameter": ("head.*", NothingSelectedError, "params="),
    "unknown word": ("knd:conv", SelectorError, "'kind'"),
    "bad syntax": ("stem | ", SelectorError, "ends too early"),
}


class Conformance:
    """The suite. Write ``class TestMine(Conformance): kit = MyKit()`` in a test file and run pytest."""

    kit: ClassVar[Kit]
    _model: ClassVar[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(getattr(cls, "kit", None), Kit):
            raise TypeError(f"{cls.__name__} needs a kit.\n  Give it an instance of its Kit: kit = MyKit()")
        muted = sorted(name for name, own in vars(Conformance).items() if _is_ours(name, own) and inspect.getattr_static(cls, name) is not own)
        if muted:
            raise TypeError(f"{cls.__name__} overrides {', '.join(muted)}: a check can't be muted.\n  Declare a gap with its reason in Kit.gaps instead.")
        unknown = sorted(set(cls.kit.gaps) - {name.removeprefix("test_") for name in dir(Conformance)})
        if unknown:
            raise TypeError(f"the gaps of {type(cls.kit).__name__} name no check: {', '.join(unknown)}")

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        for argument, values in cls.arguments(metafunc.fixturenames).items():
            metafunc.parametrize(argument, values)

    @classmethod
    def arguments(cls, names: Collection[str]) -> dict[str, tuple[str, ...]]:
        """What the checks run over."""
        known = {"optimizer": tuple(cls.kit.optimizers), "selection": tuple(SELECTIONS), "refused": tuple(REFUSED)}
        return {name: values for name, values in known.items() if name in names}

    @classmethod
    def checks(cls) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yields every check as a call, for running the suite without pytest."""
        suite = cls()
        for name in sorted(name for name in dir(Conformance) if name.startswith("test_")):
            check = getattr(suite, name)
            arguments = cls.arguments(check.__code__.co_varnames[: check.__code__.co_argcount])
            for values in itertools.product(*arguments.values()):
                yield name.removeprefix("test_"), partial(check, **dict(zip(arguments, values, strict=True)))

    @pytest.fixture(autouse=True)
    def _declared_gap(self, request: pytest.FixtureRequest) -> None:
        reason = self.kit.gaps.get(request.node.originalname.removeprefix("test_"))
        if reason:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    # The tree that everything stands on.

    def test_the_tree_is_the_reference_model(self) -> None:
        model = self.kit.reference()
        seen = layers(model)
        assert [layer.path for layer in seen] == list(EVERY)
        for layer, spec in zip(seen, REFERENCE, strict=True):
            assert layer.kind == spec.kind, f"{layer.path}: {layer.kind}"
            assert sorted(p.role for p in layer.parameters) == sorted(spec.parameters), layer.path
            assert {b.role for b in layer.buffers} >= set(spec.buffers), layer.path
        described = {p.path: p.shape for layer in seen for p in (*layer.parameters, *layer.buffers) if p.role != "rng"}
        assert described == {path: value.shape for path, value in self.kit.values(model).items()}

    # 1. Nothing frozen moves.

    def test_nothing_frozen_moves(self, optimizer: str) -> None:
        model = self.kit.reference()
        trainer = self.kit.trainer(model, optimizer, freeze(model, layers=list(FROZEN)))
        self._still(trainer, steps=4, still=FROZEN)

    def test_nothing_moves_that_is_frozen_in_mid_training(self, optimizer: str) -> None:
        model = self.kit.reference()
        trainer = self.kit.trainer(model, optimizer)
        _steps(trainer, 3)
        trainer.follow(freeze(trainer.model, layers=list(FROZEN)))
        self._still(trainer, steps=4, still=FROZEN)

    def test_frozen_parameters_of_a_training_layer_do_not_move(self, optimizer: str) -> None:
        model = self.kit.reference()
        freezing = freeze(model, layers="body", params="bias")
        trainer = self.kit.trainer(model, optimizer, freezing)
        before = self.kit.values(trainer.model)
        _steps(trainer, 3)
        moved = _moved(before, self.kit.values(trainer.model))
        assert freezing.frozen
        assert not moved & set(freezing.frozen)
        assert all(path.startswith("body.") and "bias" in _roles(trainer.model)[path] for path in freezing.frozen)

    # 2. Everything else still trains.

    def test_the_rest_trains_as_by_hand(self, optimizer: str) -> None:
        model = self.kit.reference()
        trainer = self.kit.trainer(model, optimizer, freeze(model, layers=list(FROZEN)))
        twin = self.kit.reference()
        frozen = [path for path in self.kit.values(twin) if _inside(path, FROZEN) and path in _roles(twin)]
        by_hand = self.kit.trainer(twin, optimizer, frozen=frozen, held=[path for path in FROZEN if path in {"stem.norm", "body.bn"}])
        start = self.kit.values(by_hand.model)
        _steps(trainer, 5)
        _steps(by_hand, 5)
        ours, theirs = self.kit.values(trainer.model), self.kit.values(by_hand.model)
        assert _moved(start, theirs), "the loop by hand trains nothing"
        _close(ours, theirs, 1e-6)

    def test_gradients_flow_through_what_is_frozen(self) -> None:
        model = self.kit.reference()
        trainer = self.kit.trainer(model, "sgd", freeze(model, layers=s.after("stem")))
        before = self.kit.values(trainer.model)
        _steps(trainer, 2)
        moved = _moved(before, self.kit.values(trainer.model))
        assert {path for path in moved if path in _roles(model)} >= {p.path for p in layers(model, "stem.norm")[0].parameters}
        assert all(_inside(path, ("stem",)) for path in moved)

    # 3. Inference behaviour.

    def test_norm_keeps_statistics_and_leaves_dropout_on(self) -> None:
        model = self.kit.reference()
        freezing = freeze(model)
        before = self.kit.values(model)
        first, again = (self.kit.forward(model, 1, training=True, freezing=freezing) for _ in range(2))
        assert not _moved(before, self.kit.values(model))
        assert not np.array_equal(first, again), "dropout is off"

    def test_all_is_deterministic(self) -> None:
        model = self.kit.reference()
        freezing = freeze(model, inference="all")
        first, again = (self.kit.forward(model, 1, training=True, freezing=freezing) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(first, self.kit.forward(self.kit.reference(), 1, training=False), rtol=1e-5, atol=1e-6)

    def test_all_keeps_a_frozen_dropout_still(self) -> None:
        model = self.kit.reference()
        freezing = freeze(model, layers="body.drop", inference="all")
        first, again = (self.kit.forward(model, 1, training=True, freezing=freezing) for _ in range(2))
        np.testing.assert_allclose(first, again, rtol=1e-5, atol=1e-6)

    def test_all_leaves_the_rest_training(self) -> None:
        model = self.kit.reference()
        trainer = self.kit.trainer(model, "sgd", freeze(model, layers=~s.name("bn"), inference="all"))
        before = self.kit.values(trainer.model)
        _steps(trainer, 2)
        moved = _moved(before, self.kit.values(trainer.model))
        assert {b.path for b in layers(model, "body.bn")[0].buffers if b.role == "mean"} <= moved, "a container handed its mode down"
        assert all(_inside(path, ("body.bn",)) for path in moved)

    def test_undoing_out_of_order_ends_where_undoing_in_order_does(self) -> None:
        model = self.kit.reference()
        before = self.kit.flags(model)
        first = freeze(model, layers="stem")
        second = freeze(_subject(first, model), layers=["stem", "head"], inference="all")
        third = unfreeze(_subject(second, model), layers="head")
        for freezing in (first, third, second):
            freezing.undo()
        assert self.kit.flags(model) == before

    def test_none_leaves_statistics_moving(self) -> None:
        model = self.kit.reference()
        trainer = self.kit.trainer(model, "sgd", freeze(model, layers="stem", inference="none"))
        before = self.kit.values(trainer.model)
        _steps(trainer, 2)
        moved = {path for path in _moved(before, self.kit.values(trainer.model)) if _inside(path, ("stem",))}
        buffers = {b.path for b in layers(model, "stem.norm")[0].buffers if b.role in {"mean", "variance"}}
        assert buffers <= moved
        assert not moved & set(_roles(model)), "a parameter moved"

    # 4. No cost.

    def test_frozen_parameters_cost_no_optimizer_state_and_no_gradient(self) -> None:
        model = self.kit.reference()
        freezing = freeze(model, layers=list(FROZEN))
        trainer = self.kit.trainer(model, "adam", freezing)
        _steps(trainer, 2)
        assert set(trainer.slots()) == set(freezing.trainable)
        gradients = trainer.gradients()
        assert gradients is None or not set(gradients) & set(freezing.frozen)

    # 5. Exact undo.

    def test_undo_restores_everything(self) -> None:
        model = self.kit.reference()
        before, values = self.kit.flags(model), self.kit.values(model)
        freezing = freeze(model, layers=s.first(2), inference="all")
        assert set(freezing.undo().trainable) == set(_roles(model))
        assert self.kit.flags(model) == before
        assert not _moved(values, self.kit.values(model))
        freezing.undo()
        assert self.kit.flags(model) == before, "a second undo changed something"

    def test_undo_restores_what_was_frozen_by_hand(self) -> None:
        model = self.kit.reference()
        subject, mine = model, {p.path for p in layers(model, "head")[0].parameters}
        try:
            for path in mine:
                self.kit.freeze_by_hand(model, path)
        except NotImplementedError:
            subject = freeze(model, layers="head")
        before = self.kit.flags(model)
        freezing = freeze(subject, layers=["head", "stem"])
        assert set(freezing.changed) == {p.path for layer in layers(model, "stem") for p in layer.parameters}
        assert set(unfreeze(_subject(freezing, model)).undo().frozen) == set(freezing.frozen)
        assert set(freezing.undo().frozen) == mine
        assert self.kit.flags(model) == before

    def test_leaving_the_block_undoes_also_when_it_raises(self) -> None:
        model = self.kit.reference()
        before = self.kit.flags(model)
        with pytest.raises(KeyError):  # noqa: PT012, SIM117 - that it raises with both open is the point
            with freeze(model, layers="stem") as outer, freeze(_subject(outer, model), layers=~s.last(1), inference="all") as inner:
                assert set(inner.frozen) > set(outer.frozen)
                raise KeyError
        assert self.kit.flags(model) == before

    def test_training_goes_on_after_undo(self) -> None:
        model = self.kit.reference()
        freezing = freeze(model, layers="stem")
        trainer = self.kit.trainer(model, "sgd", freezing)
        _steps(trainer, 1)
        trainer.follow(freezing.undo())
        before = self.kit.values(trainer.model)
        _steps(trainer, 2)
        moved = _moved(before, self.kit.values(trainer.model))
        assert any(_inside(path, ("stem.norm",)) and path in _roles(model) for path in moved)
        assert {b.path for b in layers(model, "stem.norm")[0].buffers if b.role == "mean"} <= moved

    # 6. The same selection everywhere.

    def test_a_selector_picks_the_same_layers_in_every_framework(self, selection: str) -> None:
        model = self.kit.reference()
        chosen, expected = self._chosen(selection, model)
        assert tuple(layer.path for layer in layers(model, chosen)) == expected
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnifreezeWarning)
            freezing = freeze(model, layers=chosen)
        assert freezing.layers == expected
        assert set(freezing.frozen) == {path for path in _roles(model) if _inside(path, expected)}

    def test_a_selectors_text_picks_what_the_selector_picks(self, selection: str) -> None:
        model = self._untouched()
        made, _ = self._chosen(selection, model)
        chosen = s.everything if made is None else s.selector(made)
        try:
            text = chosen.text
        except SelectorError:
            assert selection in {"where", "an object", "objects"}
            return
        assert [layer.path for layer in layers(model, text)] == [layer.path for layer in layers(model, chosen)]

    def test_params_narrow_by_role(self) -> None:
        model = self.kit.reference()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnifreezeWarning)
            everything = freeze(model)
        freezing = unfreeze(_subject(everything, model), params="bias")
        assert set(freezing.trainable) == {path for path, role in _roles(model).items() if role == "bias"}
        assert set(freezing.held) == set(everything.held), "a narrow unfreeze let go of statistics"

    # 7. No silent mistake.

    def test_a_wrong_selector_is_refused_and_changes_nothing(self, refused: str) -> None:
        model = self._untouched()
        before = self.kit.flags(model)
        chosen, error, word = REFUSED[refused]
        with pytest.raises(error) as caught:
            freeze(model, layers=chosen)
        assert word in str(caught.value)
        assert self.kit.flags(model) == before

    def test_wrong_arguments_are_refused_and_change_nothing(self) -> None:
        model = self.kit.reference()
        before = self.kit.flags(model)
        with pytest.raises(ArgumentError, match="layers"):
            freeze(model, layer="stem")  # type: ignore[call-arg]
        with pytest.raises(ArgumentError, match="norm"):
            freeze(model, inference="nrom")  # type: ignore[arg-type]
        with pytest.raises(NothingSelectedError, match="bias"):
            freeze(model, params="biass")
        with pytest.raises(NothingSelectedError, match="dropout"):
            freeze(model, layers=s.kind("dropuot"))
        with pytest.raises(NothingSelectedError, match=r"body\.drop"):
            freeze(model, layers="body.drop")
        with pytest.raises(UnknownModelError):
            freeze(object())
        assert self.kit.flags(model) == before

    def test_a_layer_of_another_model_is_refused(self) -> None:
        model, other = self.kit.reference(), self.kit.reference()
        before = self.kit.flags(model)
        with pytest.raises(NothingSelectedError, match="another model"):
            freeze(model, layers=[self.kit.part(other, "stem")])
        assert self.kit.flags(model) == before

    def test_freezing_everything_by_a_selector_warns(self) -> None:
        model = self.kit.reference()
        with pytest.warns(UnifreezeWarning, match="nothing will train"):
            freeze(model, layers="**")

    # 8. Sharing is resolved by identity.

    def test_a_shared_parameter_is_frozen_through_either_path(self) -> None:
        for path in ("embed", "head"):
            model = self.kit.tied()
            freezing = freeze(model, layers=path)
            assert len(freezing.frozen) == 1, path
            assert unifreeze.summary(_subject(freezing, model)).totals.frozen == TIED["embed"]
            trainer = self.kit.trainer(model, "sgd", freezing)
            before = self.kit.values(trainer.model)
            _steps(trainer, 2)
            moved = _moved(before, self.kit.values(trainer.model))
            assert moved
            assert all(_inside(moving, ("mid",)) for moving in moved)

    def test_two_statuses_for_a_shared_parameter_are_refused(self) -> None:
        model = self.kit.tied()
        before = self.kit.flags(model)
        for chosen in (~s.name("head"), s.everything - "embed"):
            with pytest.raises(ConflictError, match=r"(?s)embed.*head|head.*embed"):
                freeze(model, layers=chosen)
        with pytest.raises(ConflictError):
            unifreeze.apply(model, {"steps": [{"freeze": "embed"}, {"unfreeze": "head"}]})
        assert self.kit.flags(model) == before

    # 9. Counts are true.

    def test_counts_are_true(self) -> None:
        model = self.kit.reference()
        values, roles = self.kit.values(model), _roles(model)
        totals = summary(freeze(model, layers="stem")).totals
        random = sum(b.size for layer in _tree(model) for b in layer.buffers if b.role == "rng")
        assert totals.parameters == sum(values[path].size for path in roles)
        assert totals.frozen == sum(values[path].size for path in roles if _inside(path, ("stem",)))
        assert totals.trainable == totals.parameters - totals.frozen
        assert totals.buffers - random == sum(value.size for path, value in values.items() if path not in roles)
        assert totals.bytes_trainable + totals.bytes_frozen == sum(values[path].nbytes for path in roles)

    def test_a_shared_parameter_counts_once(self) -> None:
        seen = summary(self.kit.tied())
        assert seen.totals.parameters == sum(TIED.values())
        assert {row.path: row.parameters for row in seen.rows if row.path in TIED} == dict(TIED)

    def test_the_question_it_all_began_with(self) -> None:
        totals = summary(freeze(self.kit.question(), layers=s.first(1))).totals
        assert (totals.parameters, totals.trainable, totals.frozen, totals.buffers) == (3562, 330, 3232, 0)

    def test_counting_changes_nothing(self) -> None:
        model = self.kit.reference()
        before, values = self.kit.flags(model), self.kit.values(model)
        shown = summary(model)
        assert all(word in str(shown) and word in shown.to_markdown() and word in shown._repr_html_() for word in ("layer_10", "trainable"))
        assert shown.to_dict()["totals"]["parameters"] == shown.totals.parameters
        layers(model, "stem")
        assert self.kit.flags(model) == before
        assert not _moved(values, self.kit.values(model))

    def test_the_status_of_a_layer_is_that_of_its_parts(self) -> None:
        freezing = freeze(self.kit.reference(), layers=s.first(3))
        rows = {row.path: row.status for row in summary(freezing).rows}
        assert (rows["stem"], rows["body"], rows["head"], rows["body.layer_1"]) == ("frozen", "partial", "trainable", "frozen")

    # 10. It lasts.

    def test_it_lasts(self) -> None:
        model = self.kit.reference()
        freezing = freeze(model, layers=list(FROZEN))
        survivors = self.kit.lasting(model)
        assert survivors
        for what, survivor in survivors.items():
            trainer = self.kit.trainer(survivor, "sgd", freezing)
            before = self.kit.values(trainer.model)
            _steps(trainer, 2)
            moved = _moved(before, self.kit.values(trainer.model))
            assert moved, what
            assert not [path for path in moved if _inside(path, FROZEN)], what

    # 11. Growing and shrinking in mid-training.

    def test_growing_keeps_what_the_optimizer_knows(self) -> None:
        for optimizer in ("momentum", "adam"):
            ours, theirs = (self._growing(optimizer, grow=grow) for grow in (True, False))
            kept = {path for path in ours if _inside(path, ("body",))}
            _close({path: ours[path] for path in kept}, {path: theirs[path] for path in kept}, 1e-5)

    def test_what_is_unfrozen_late_starts_as_if_fresh(self) -> None:
        start = self.kit.values(self.kit.reference())
        end = self._growing("adam", grow=True)
        change = max(float(np.abs(end[path] - start[path]).max()) for path in _roles(self.kit.reference()) if _inside(path, ("head",)))
        assert 0.95 * RATE <= change <= 1.05 * RATE, f"the first step is {change / RATE:.2f} times that of a fresh Adam"

    def _growing(self, optimizer: str, *, grow: bool) -> Arrays:
        """Five steps with stem and head frozen, then one step, before which the head may be unfrozen."""
        model = self.kit.reference()
        freezing = freeze(model, layers=["stem", "head"])
        trainer = self.kit.trainer(model, optimizer, freezing)
        _steps(trainer, 5)
        if grow:
            trainer.follow(unfreeze(_subject(freezing, model), layers="head"))
        _steps(trainer, 1)
        return self.kit.values(trainer.model)

    # 12. Provable.

    def test_verify_passes_what_is_still_and_names_what_moved(self) -> None:
        model = self.kit.reference()
        freezing = freeze(model, layers=list(FROZEN))
        trainer = self.kit.trainer(model, "adamw", freezing)
        _steps(trainer, 2)
        promised = {path for path in self.kit.values(model) if _inside(path, FROZEN)}
        assert set(freezing.verify(trainer.model).arrays) == promised
        for path in sorted(promised):
            fresh = self.kit.reference()
            freezing = freeze(fresh, layers=list(FROZEN))
            with pytest.raises(FrozenMovedError) as caught:
                freezing.verify(self.kit.disturb(fresh, path))
            assert path in str(caught.value)

    def test_a_freezing_tells_what_a_fresh_reading_tells(self) -> None:
        for inference in ("norm", "all", "none"):
            model = self.kit.reference()
            freezing = freeze(model, layers=list(FROZEN), inference=inference)
            nodes = _tree(_subject(freezing, model))
            parameters = [p for layer in nodes for p in layer.parameters]
            assert freezing.frozen == tuple(p.path for p in parameters if p.status == "frozen")
            assert freezing.trainable == tuple(p.path for p in parameters if p.status == "trainable")
            assert freezing.held == tuple(layer.path for layer in nodes if layer.inference is not None)
            assert freezing.changed == freezing.frozen != ()

    # 13. Idempotent and cheap.

    def test_freezing_twice_is_freezing_once(self) -> None:
        model = self.kit.reference()
        before = self.kit.flags(model)
        first = freeze(model, layers=list(FROZEN))
        frozen = self.kit.flags(model)
        again = freeze(_subject(first, model), layers=list(FROZEN))
        assert again.changed == ()
        assert again.frozen == first.frozen
        assert self.kit.flags(model) == frozen
        again.undo()
        assert self.kit.flags(model) == frozen
        first.undo()
        assert self.kit.flags(model) == before

    def test_cost_grows_no_worse_than_linearly(self) -> None:
        seconds = {length: _seconds(self.kit.chain(length)) for length in (50, 400)}
        assert seconds[400] < 4 * 8 * seconds[50] + 0.05, seconds
        assert seconds[400] < 1, seconds

    def test_apply_makes_the_state_exactly_what_the_recipe_says(self) -> None:
        model = self.kit.reference()
        before = self.kit.flags(model)
        first = freeze(model, layers="head")
        recipe = {"name": "all but the last", "steps": [{"freeze": "~last:1", "inference": "all"}, {"unfreeze": "kind:batch_norm"}]}
        applied = unifreeze.apply(_subject(first, model), recipe)
        assert set(applied.frozen) == {path for path in _roles(model) if not _inside(path, ("head", "stem.norm", "body.bn"))}
        assert not {"head", "stem.norm", "body.bn"} & set(applied.held)
        assert unifreeze.apply(_subject(applied, model), recipe).changed == ()
        assert set(applied.undo().frozen) == set(first.frozen)
        first.undo()
        assert self.kit.flags(model) == before

    def test_what_was_recorded_brings_about_the_same(self) -> None:
        for chosen, params, inference in (("stem", None, "norm"), ("~last:1", None, "all"), ("kind:*_norm", None, "norm"), ("body", "bias", "none")):
            model, fresh = self.kit.reference(), self.kit.reference()
            freezing = freeze(model, layers=chosen, params=params, inference=inference)  # type: ignore[arg-type]
            recipe = unifreeze.Recipe.record(_subject(freezing, model))
            again = unifreeze.apply(fresh, unifreeze.Recipe.read(recipe.to_json()))
            roles = _roles(model)
            picked = {path for path in roles if any(_inside(path, [layer.path]) for layer in layers(model, chosen)) and params in {None, roles[path]}}
            assert set(again.frozen) == set(freezing.frozen) == picked, recipe
            assert set(again.held) == set(freezing.held), recipe
            assert len(recipe.steps) == 1, recipe

    @classmethod
    def _untouched(cls) -> Any:
        """A model for checks that change nothing, built once: building takes most of the time in some frameworks."""
        if "_model" not in vars(cls):
            cls._model = cls.kit.reference()
        return cls._model

    def _chosen(self, selection: str, model: object) -> tuple[object, tuple[str, ...]]:
        made, expected = SELECTIONS[selection]
        chosen = made(self.kit, model) if isinstance(made, FunctionType) else made
        return chosen, expected or tuple(spec.path for spec in REFERENCE if spec.kind == _a_kind(self.kit))

    def _still(self, trainer: Trainer, *, steps: int, still: Collection[str]) -> None:
        before = self.kit.values(trainer.model)
        _steps(trainer, steps)
        moved = _moved(before, self.kit.values(trainer.model))
        assert not [path for path in moved if _inside(path, still)]
        assert [path for path in moved if not _inside(path, still)], "nothing trains at all"


def _is_ours(name: str, own: object) -> bool:
    """Whether a name is a part of the suite: what a subclass, or a class mixed in before it, must leave as it is."""
    return name not in {"__init_subclass__", "kit", "_model"} and (callable(own) or isinstance(own, classmethod)) and not name.startswith("__")


def _a_kind(kit: Kit) -> str:
    return next(iter(kit.types), "dense")


def _tree(model: object) -> tuple[Any, ...]:
    return tuple(_read(model)[1].walk())


def _roles(model: object) -> dict[str, str]:
    return {p.path: p.role for layer in _tree(model) for p in layer.parameters}


def _subject(freezing: Freezing, model: object) -> object:
    """What a user gives to the next verb: the model where it carries its state, else the Freezing."""
    return model if freezing.model is model else freezing


def _inside(path: str, layers: Collection[str]) -> bool:
    return any(path == layer or path.startswith(f"{layer}.") for layer in layers)


def _steps(trainer: Trainer, count: int) -> None:
    for _ in range(count):
        trainer.step()


def _moved(before: Arrays, after: Arrays) -> set[str]:
    """The arrays that differ in any byte, so that -0.0, denormals and NaN payloads count."""
    assert before.keys() == after.keys()
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


def _close(ours: Arrays, theirs: Arrays, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_allclose(ours[path].astype(np.float64), theirs[path].astype(np.float64), rtol=tolerance, atol=tolerance, err_msg=path)


def _seconds(model: object) -> float:
    """The best of three, since other programs run as well."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        freezing = freeze(model, layers="**", params="bias")
        summary(freezing)
        taken.append(time.perf_counter() - start)
        freezing.undo()
    return min(taken)
