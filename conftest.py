"""Runs the Python blocks of the pages, in order and in one namespace a page, when ``PAGES`` names the session: ``PAGES=torch pytest docs/tour.md``.

A comment ``<!-- runs: torch keras -->`` says where the blocks below it run: the names of sessions, or of frameworks (``keras`` is each of Keras's sessions,
``core`` needs none); ``nowhere`` is for blocks that only show a form. Made models and data stand in invisible blocks: ``<!-- code: python``.
"""

import os
import re
from collections.abc import Iterable
from doctest import ELLIPSIS

MARK = re.compile(r"<!-- runs: (.*?) -->")
HERE = os.environ.get("PAGES", "")

if HERE:
    from sybil import Document, Region, Sybil
    from sybil.parsers.markdown import PythonCodeBlockParser

    class Marked(PythonCodeBlockParser):
        """The blocks that are marked for this session. A block without a mark is an error: it would never run."""

        def __call__(self, document: Document) -> Iterable[Region]:
            """Yields the blocks of a page that run here."""
            marks = [(mark.start(), mark[1].split()) for mark in MARK.finditer(document.text)]
            for region in super().__call__(document):
                names = next((names for start, names in reversed(marks) if start < region.start), None)
                if names is None:
                    raise ValueError(f"{document.path}: a block of Python stands before any <!-- runs: … --> mark")
                if {HERE, HERE.partition("-")[0]} & set(names):
                    yield region

    pytest_collect_file = Sybil(parsers=[Marked(doctest_optionflags=ELLIPSIS)], patterns=["README.md", "docs/*.md"]).pytest()
