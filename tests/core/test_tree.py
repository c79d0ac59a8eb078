"""A tree under another state: only what the state decides differs."""

from __future__ import annotations

from dataclasses import fields

from unifreeze._tree import Layer, Parameter, State, unique, with_state


def _parameter(path: str, array: object = None) -> Parameter:
    return Parameter(path, (2, 3), "float32", 24, "trainable", "kernel", array or object())


def test_a_layer_under_another_state_keeps_all_else() -> None:
    facts = {"output_shape": (None, 3), "native": object(), "lost_order": "sorted", "hidden_state": True, "stack": 4, "auto_named": True}
    inner = Layer("a", "dense", "Dense", (_parameter("a.kernel"),), (), (), **facts)
    beside, copy = Layer("b", "dense", "Dense", (_parameter("b.kernel"),)), object()
    tree = Layer("", "container", "dict", children=(inner, beside))
    same, new = with_state(tree, State()), with_state(tree, State(frozenset({"a.kernel"}), {"a": "norm"}), {id(facts["native"]): copy})
    assert same is tree
    assert [layer.path for layer in new.walk()] == ["", "a", "b"]
    assert [layer.parameters[0].status for layer in new.children] == ["frozen", "trainable"]
    differing = {one.name for one in fields(Layer) if getattr(new.children[0], one.name) != getattr(inner, one.name)}
    assert differing == {"parameters", "inference", "native"}
    assert new.children[0].native is copy
    assert inner.parameters[0].status == "trainable"


def test_a_shared_array_counts_at_its_first_path() -> None:
    shared = object()
    parameters = [_parameter("a", shared), _parameter("b"), _parameter("c", shared)]
    assert [one.path for one in unique(iter(parameters))] == ["a", "b"]
    assert [one.path for one in unique(parameters[:2])] == ["a", "b"]
