"""What a layer does, guessed from its name and from the names and shapes of its arrays; a pytree says no more."""

from __future__ import annotations

from typing import Any

from unifreeze.plugin import role

from .nodes import Node, stem
from .tree import dtype_name, is_frozen_dict, is_inexact, is_key

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


def kind_of(node: Node) -> str:
    """The kind of a layer, one of the words of ``KINDS``."""
    named = _STEMS.get(stem(node.name)[0].lower().replace("_", ""), "")
    if named in _WHOLE:
        return named
    own = {path.rpartition(".")[2]: array for path, array, ours in node.arrays if ours}
    state = {state_role(path.rpartition(".")[2], array.dtype) for path, array, ours in node.arrays if not ours}
    return _of_arrays(named, own, state) if own or state else "container"


def _of_arrays(named: str, own: dict[str, Any], state: set[str]) -> str:
    weight = own.get("kernel", own.get("w"))
    if {"mean", "variance"} <= state:
        return "batch_norm"
    if {"embedding", "embeddings"} & own.keys():
        return "embedding"
    if weight is not None:
        return _of_weight(named, weight, own.get("bias", own.get("b")))
    if named in _NORMS or named == "activation":
        return named
    scales = own.keys() & {"scale", "gamma"} and own.keys() <= _NORM_LEAVES
    return "other" if not scales else "layer_norm" if len(own) > 1 else "rms_norm"


def _of_weight(named: str, weight: Any, bias: Any) -> str:
    """A kernel's axes tell; those that it shares with a bias of several axes (heads, a scanned stack) do not count."""
    axes = len(weight.shape) - (len(bias.shape) - 1 if bias is not None and len(bias.shape) else 0)
    if named in {"dense", "embedding"} or (named in _CONVS and axes > 2):
        return named
    return "dense" if axes == 2 else "conv" if axes > 2 else "other"


def type_of(node: Node, kind: str) -> str:
    """The class name: of a container that is more than a dict or list, or as the layer's name shows it (``Dense_0``), or else the kind written like one."""
    name, number = stem(node.name)
    plain = node.native is None or isinstance(node.native, dict | list) or type(node.native) is tuple or is_frozen_dict(node.native)
    if not plain:
        return type(node.native).__name__
    if number >= 0 and name[:1].isupper():
        return name
    if kind in {"container", "other"}:
        return "dict" if node.native is None else type(node.native).__name__
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
