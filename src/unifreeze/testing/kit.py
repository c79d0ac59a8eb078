"""The kit: what a tester supplies so that the conformance suite can run on a backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifreeze import Freezing

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A weighted layer of the reference model."""

    path: str
    kind: str
    parameters: tuple[str, ...]  # roles
    buffers: tuple[str, ...] = ()


#: The reference model, built in every framework with these paths and in this order: two containers (``stem``, ``body``) and a ``head``, images of
#: 8×8×3 in (axes as the framework likes them), three logits out. Between the weighted layers stand a ReLU after ``stem.norm``, a global average pool
#: over the image after it (both belong to no particular container), and a dropout of 0.5 at ``body.drop``, right after ``body.norm``. The stem's
#: convolution is 3×3 from 3 to 4 channels with padding, and every dense layer of the body has 6 outputs.
REFERENCE: tuple[LayerSpec, ...] = (
    LayerSpec("stem.conv", "conv", ("kernel", "bias")),
    LayerSpec("stem.norm", "batch_norm", ("scale", "bias"), ("mean", "variance")),
    LayerSpec("body.layer_1", "dense", ("kernel", "bias")),
    LayerSpec("body.norm", "layer_norm", ("scale", "bias")),
    LayerSpec("body.layer_2", "dense", ("kernel", "bias")),
    LayerSpec("body.layer_10", "dense", ("kernel", "bias")),
    LayerSpec("body.bn", "batch_norm", ("scale", "bias"), ("mean", "variance")),
    LayerSpec("head", "dense", ("kernel", "bias")),
)


#: What ``Kit.tied`` builds: path, and number of elements that the layer adds to the model. ``head`` reaches the array of ``embed`` again.
TIED: Mapping[str, int] = {"embed": 66, "mid": 42, "head": 0}

RATE = 0.01


class Trainer(ABC):
    """A real training loop over made data, as a user of the framework would write it.

    Two loops over equally built models see the same data and draw the same dropout masks, step by step, so that their trajectories can be compared.

    Attributes:
        model: The model as it is now. Where models are changed in place it is always the same object.
    """

    model: Any

    @abstractmethod
    def step(self) -> None:
        """Takes one real step in training mode: forward, loss, backward, optimizer; also updates statistics where the framework keeps them."""

    def follow(self, freezing: Freezing) -> None:  # noqa: B027 - most have nothing to do
        """Goes on under another ``Freezing``, with the live optimizer, as a user would. Does nothing where the model itself carries the state."""

    @abstractmethod
    def slots(self) -> Collection[str]:
        """Returns the paths of the parameters for which the optimizer keeps arrays now (moments), read from the optimizer itself."""

    def gradients(self) -> Collection[str] | None:
        """Returns the paths of the parameters for which the last step made a gradient array; ``None`` where the framework does not show them."""
        return None


class Kit(ABC):
    """What the suite needs of a framework.

    Nothing here goes through unifreeze; only ``trainer`` and ``forward`` hand a ``Freezing`` to the training code, where that needs it (JAX pytrees).

    All models are built anew at every call, with random weights that are the same at every call, no weight being zero (biases, too) and the statistics of
    normalisation layers away from zero and one.

    Attributes:
        name: The backend's name, such as ``torch``.
        optimizers: Names for ``trainer(optimizer=…)``; at least ``sgd``, ``momentum``, ``adam``, ``adamw`` (with decay).
        types: For some kinds the framework's own class of that kind and its name, to test ``type`` with: ``{"dense": Linear}``.
        gaps: Checks that can't hold on this framework, each with its reason. A gap is a strict expected failure: it turns red when it heals.
    """

    name: str
    optimizers: tuple[str, ...] = ("sgd", "momentum", "adam", "adamw")
    types: Mapping[str, type] = {}
    gaps: Mapping[str, str] = {}

    @abstractmethod
    def reference(self) -> Any:
        """Builds the model that ``REFERENCE`` describes."""

    @abstractmethod
    def question(self) -> Any:
        """Builds the model of the founding question: dense 32 on 100 inputs, dense 10, softmax. 3,562 parameters."""

    @abstractmethod
    def tied(self) -> Any:
        """Builds a model that ``TIED`` describes.

        An embedding ``embed`` of 11 entries and 6 features, a dense ``mid`` from 6 to 6 with bias, and a ``head`` that projects back to 11 through
        the embedding's own array and owns nothing else.
        """

    @abstractmethod
    def chain(self, length: int) -> Any:
        """Builds ``length`` dense layers of one input and one output in a row."""

    @abstractmethod
    def part(self, model: Any, path: str) -> Any:
        """Returns the framework's own object for the layer at ``path`` (where trees are plain data, its sub-tree)."""

    @abstractmethod
    def trainer(self, model: Any, optimizer: str, freezing: Freezing | None = None, frozen: Collection[str] = (), held: Collection[str] = ()) -> Trainer:
        """Returns a training loop over *all* parameters of the reference model, or of ``tied()`` (token ids in, logits out).

        Args:
            model: The model.
            optimizer: One of ``optimizers``; learning rate ``RATE``, decay 0.1 in ``adamw``.
            freezing: What freezing it returned, for frameworks whose training code needs it; others ignore it.
            frozen: Parameters that this loop must keep still by hand, without unifreeze: it differentiates and optimises only the others. The reference to
                compare with.
            held: Layers that this loop must run as at inference by hand.
        """

    @abstractmethod
    def values(self, model: Any) -> Arrays:
        """Returns a copy of every parameter and buffer by dotted path, read with the framework's own means. Random-number state is left out."""

    @abstractmethod
    def disturb(self, model: Any, path: str) -> Any:
        """Returns the model with one element of one array changed in its last bits, natively: in place where models are changed in place."""

    @abstractmethod
    def forward(self, model: Any, seed: int, *, training: bool, freezing: Freezing | None = None) -> NDArray[np.float32]:
        """Returns the reference model's outputs for a batch of 8 images made from ``seed``; dropout draws anew at every call when it is active."""

    @abstractmethod
    def flags(self, model: Any) -> Hashable:
        """Returns everything that freezing could have changed beside values: flags, classes, modes, hooks, in the framework's own terms. For undo."""

    @abstractmethod
    def freeze_by_hand(self, model: Any, path: str) -> None:
        """Freezes one parameter the way the framework's users do by hand. Raises ``NotImplementedError`` where a model can't carry that."""

    @abstractmethod
    def lasting(self, model: Any) -> Mapping[str, Any]:
        """Returns what becomes of a frozen model under things users do, by name: ``{"deepcopy": …, "train()": …}``, each a model that must still be frozen."""
