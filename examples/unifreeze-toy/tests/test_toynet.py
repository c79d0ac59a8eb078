"""A stranger proves his backend: the whole suite, in two lines."""

from unifreeze.testing import Conformance
from unifreeze_toynet_kit import ToynetKit


class TestToynet(Conformance):
    kit = ToynetKit()
