"""What a layer does, guessed from its name and from the names and shapes of its arrays; a pytree says no more."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import Any

from unifreeze.plugin import role

from .tree import dtype_name, is_frozen_dict_class, is_inexact, is_key

# Names that linen and haiku give by themselves, in lower case and without underscores.
_STEMS = {
    **dict.fromkeys(("dense", "densegeneral", "einsum", "linear"), "dense"),
    **dict.fromkeys(("conv", "convlocal", "conv1d", "conv2d", "conv3d", "convnd"), "conv"),
    **dict.fromkeys(("depthwiseconv1d", "depthwiseconv2d", "depthwiseconv3d", "depthwiseconvnd"), "depthwise_conv"),
    **dict.fromkeys(("convtranspose", "conv1dtranspose", "conv2dtranspose", "conv3dtranspose", "convndtranspose"), "conv_transpose"),
    **dict.fromkeys(("embed", "embedding"), "embedding"),
    "batchnorm": "batch_norm",
    "layernorm": "layer_norm",
    "groupnorm": "group_norm",
    "instancenorm": "instance_norm",
    "rmsnorm": "rms_norm",
    **dict.fromkeys(("multiheaddotproductattention", "multiheadattention", "selfattention"), "attention"),
    **dict.fromkeys(("lstmcell", "optimizedlstmcell", "grucell", "mgucell", "simplecell", "convlstmcell", "lstm", "gru", "vanillarnn"), "recurrent"),
    "prelu": "activation",
}
_WHOLE = {"attention", "recurrent"}
_CONVS = {"conv", "depthwise_conv", "conv_transpose"}
_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
_NORM_LEAVES = {"scale", "offset", "bias", "gamma", "beta"}
_ROLES = {"kernel", "bias", "scale", "embedding", "recurrent_kernel"}


#: What tells of an array in its layer: its own name, its shape, its type, and whether it stands among the parameters.
Seen = tuple[str, tuple[int, ...], Any, bool]


def kind_of(base: str, arrays: Iterable[Seen]) -> str:
    """The kind of a layer, one of the words of ``KINDS``.

    Args:
        base: The layer's name without its number.
        arrays: The arrays that it owns itself.
    """
    named = _STEMS.get(base.lower().replace("_", ""), "")
    if named in _WHOLE:
        return named
    own = {name: shape for name, shape, _, ours in arrays if ours}
    state = {state_role(name, dtype) for name, _, dtype, ours in arrays if not ours}
    return _of_arrays(named, own, state) if own or state else "container"


def _of_arrays(named: str, own: dict[str, tuple[int, ...]], state: set[str]) -> str:
    weight = own.get("kernel", own.get("w"))
    if {"mean", "variance"} <= state:
        return "batch_norm"
    if {"embedding", "embeddings"} & own.keys():
        return "embedding"
    if weight is not None:
        return _of_weight(named, weight, own.get("bias", own.get("b", ())))
    if named in _NORMS or named == "activation":
        return named
    scales = own.keys() & {"scale", "gamma"} and own.keys() <= _NORM_LEAVES
    return "other" if not scales else "layer_norm" if len(own) > 1 else "rms_norm"


def _of_weight(named: str, weight: tuple[int, ...], bias: tuple[int, ...]) -> str:
    """A kernel's axes tell; those that it shares with a bias of several axes (heads, a scanned stack) do not count."""
    axes = len(weight) - (len(bias) - 1 if bias else 0)
    if named in {"dense", "embedding"} or (named in _CONVS and axes > 2):
        return named
    return "dense" if axes == 2 else "conv" if axes > 2 else "other"


def type_of(base: str, kind: str, native: type, *, numbered: bool) -> str:
    """The class name: of a container that is more than a dict or list, or as the layer's name shows it (``Dense_0``), or else the kind written like one.

    Args:
        base: The layer's name without its number.
        kind: Its kind.
        native: The class of the container.
        numbered: Whether the name has a number.
    """
    if not (native is tuple or issubclass(native, NoneType | dict | list) or is_frozen_dict_class(native)):
        return native.__name__
    if numbered and base[:1].isupper():
        return base
    if kind in {"container", "other"}:
        return "dict" if native is NoneType else native.__name__
    return "".join(word.capitalize() for word in kind.split("_"))


def is_parameter(name: str, dtype: Any, kind: str, *, ours: bool) -> bool:
    """Whether an array is a parameter: it can have a gradient, or it is a weight that has been quantised to integers."""
    return ours and not is_key(dtype) and (is_inexact(dtype) or role(kind, name) in _ROLES)


def state_role(name: str, dtype: Any) -> str:
    """The field's name for a buffer."""
    if is_key(dtype) or (dtype_name(dtype) == "uint32" and any(word in name.lower() for word in ("key", "rng", "seed"))):
        return "rng"
    plain = name.lower()
    if plain in {"mean", "mean_ema/average", "running_mean"}:
        return "mean"
    if plain in {"var", "variance", "var_ema/average", "running_var"}:
        return "variance"
    return "count" if plain in {"count", "counter", "step"} else name
