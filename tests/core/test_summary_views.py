"""What a summary can be asked for, and how it is shown: columns, order, repeats, differences, text, HTML, the page."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import timeit
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from rich.console import Console

import toynet as tn
from unifreeze import Summary, errors, freeze, summary, unfreeze
from unifreeze._summary.plain import plain
from unifreeze.select import first, kind
from unifreeze_toynet_kit import ToynetKit

RNG = np.random.default_rng(0)
EVIL = "</script><script>alert(1)</script><b>&amp;\u2028|`*x*`"
SCHEMA = json.loads((Path(__file__).parents[2] / "docs/summary.schema.json").read_text())


def reference() -> Any:
    return ToynetKit().reference()


def blocks(count: int = 5, width: int = 3) -> Any:
    made = {f"block_{i}": tn.Chain(dense=tn.Dense(width, width, RNG), norm=tn.BatchNorm(width, RNG)) for i in range(count)}
    return tn.Chain(**made, head=tn.Dense(width, 1, RNG))


def test_columns_are_shown_in_the_order_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # a narrower table folds its words
    model = reference()
    freeze(model, layers="stem")
    shown = summary(model, columns=["path", "bytes", "kind", "dtype", "statistics", "why"])
    lines = [re.split(r"\s{2,}", line.strip()) for line in str(shown).splitlines()]
    assert ["Path", "Bytes", "Kind", "Dtype", "Statistics", "Why it is frozen"] in lines
    assert ["stem.norm", "64 B", "batch_norm", "float32", "still", "freeze(layers='stem')"] in lines
    assert ["body.bn", "96 B", "batch_norm", "float32", "move"] in lines


@pytest.mark.parametrize(
    ("wrong", "said"), [({"columns": ["pth"]}, "did you mean 'path'"), ({"columns": []}, "names no column"), ({"sort": "size"}, "no order")]
)
def test_what_there_is_not_is_refused_with_what_there_is(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.ArgumentError, match=said):
        summary(reference(), **wrong)
    with pytest.raises(errors.ArgumentError, match=said):
        freeze(reference(), layers="stem").summary(**wrong)


def test_what_a_backend_can_not_tell_is_refused_with_the_reason() -> None:
    for asked in ({"input_shape": (1, 8, 8, 3)}, {"inputs": np.zeros((1, 8, 8, 3))}, {"optimizer": "adam"}):
        with pytest.raises(errors.BackendError, match="toynet backend"):
            summary(reference(), **asked)
    with pytest.raises(errors.ArgumentError, match="both given"):
        summary(reference(), inputs=np.zeros(1), input_shape=(1,))
    with pytest.raises(errors.ArgumentError, match="(?s)has no argument 'dept'.*did you mean 'depth'"):
        freeze(reference(), layers="stem").summary(dept=1)


def test_a_selector_filters_rows_and_no_totals() -> None:
    model = reference()
    shown = summary(model, layers=kind("batch_norm"))
    assert [row.path for row in shown.rows] == ["stem.norm", "body.bn"]
    assert shown.totals == summary(model).totals
    assert "Shown: 2 of 14 layers" in str(shown)
    assert "stem.norm" in str(shown)
    with pytest.raises(errors.NothingSelectedError):
        summary(model, layers="nothing")


def test_rows_are_sorted_the_largest_first() -> None:
    found = summary(reference(), sort="parameters")
    counts = [row.parameters for row in found.rows]
    assert counts == sorted(counts, reverse=True)
    assert found.rows[0].path == ""
    assert {row.path for row in found.rows} == {row.path for row in summary(reference()).rows}
    paths = [row.path for row in summary(blocks(11), sort="path", depth=1).rows]
    assert paths.index("block_2") < paths.index("block_10")


def test_equal_neighbours_become_one_row() -> None:
    found = summary(blocks(), collapse=True)
    run = next(row for row in found.rows if row.repeat > 1)
    assert (run.path, run.last, run.repeat, run.parameters) == ("block_0", "block_4", 5, 3 * 3 + 3 + 3 + 3)
    assert [row.path for row in found.rows] == ["", "block_0", "block_0.dense", "block_0.norm", "head"]
    assert "block_0 – block_4" in str(found)
    assert "each 18" in str(found)
    assert found.totals == summary(blocks()).totals


def different(model: Any, how: str) -> None:
    block = model.block_2
    if how == "status":
        freeze(model, layers="block_2", params="bias")
    elif how == "held":
        freeze(model, layers="block_2.norm")
        unfreeze(model, layers="block_2.norm", params=["scale", "bias"])
    elif how == "shape":
        block.dense.kernel.value = np.zeros((3, 4), np.float32)
    elif how == "dtype":
        block.dense.bias.value = block.dense.bias.value.astype(np.float16)
    elif how == "type":
        block.norm = tn.LayerNorm(3, RNG)
    elif how == "name":
        block.other = block.__dict__.pop("dense")
    elif how == "shared":
        block.dense.kernel = model.block_0.dense.kernel


@pytest.mark.parametrize("how", ["status", "held", "shape", "dtype", "type", "name", "shared"])
def test_what_differs_in_anything_is_not_joined(how: str) -> None:
    model = blocks()
    different(model, how)
    assert [(row.path, row.last) for row in summary(model, collapse=True).rows if row.repeat > 1] == [("block_0", "block_1"), ("block_3", "block_4")]


def test_a_filter_parts_what_would_be_joined() -> None:
    rows = summary(blocks(), collapse=True, layers=["block_0", "block_1", "block_3"]).rows
    assert [(row.path, row.last) for row in rows if row.depth == 1] == [("block_0", "block_1"), ("block_3", "")]


def test_the_calls_that_still_hold_are_told() -> None:
    model = reference()

    def why(path: str) -> str:
        return next(row.more["why"] for row in summary(model, columns=["why"]).rows if row.path == path)

    outer = freeze(model, layers=first(1))
    inner = freeze(model, layers=lambda layer: layer.path == "body.layer_1")
    assert (why("stem.conv"), why("head")) == ("freeze(layers=first(1))", "")
    assert why("body.layer_1").startswith("freeze(layers=<lambda>")
    inner.undo()
    assert why("body.layer_1") == ""
    model.body.layer_1.kernel.trainable = False
    assert why("body.layer_1") == "by hand (no call is known)"
    model.head.kernel.trainable = False
    assert why("head") == "by hand (no call is known)"
    freeze(model, layers="stem.conv", params="kernel")
    assert why("stem.conv") == "freeze(layers='stem.conv', params='kernel'); freeze(layers=first(1))"
    outer.undo()
    assert why("stem.conv") == ""


def test_a_diff_tells_what_turned_appeared_went_and_changed() -> None:
    model = reference()
    before = summary(model)
    assert not before.diff(model)
    assert "nothing changed" in str(before.diff(before))
    f = freeze(model, layers="stem")
    changed = before.diff(f)
    assert changed.frozen == ("stem.conv.kernel", "stem.conv.bias", "stem.norm.scale", "stem.norm.bias")
    assert [change.path for change in changed.held] == ["stem.norm"]
    assert dict(changed.totals) == {"trainable": -120, "frozen": 120}
    assert summary(f).diff(before).trainable == changed.frozen
    model.head = tn.Dense(6, 5, RNG)
    model.extra = tn.Dense(1, 1, RNG)
    del model.pool
    model.body.norm.__class__ = tn.BatchNorm
    changed = before.diff(model)
    assert [(one.path, one.before, one.after) for one in changed.shapes] == [
        ("head.kernel", "(6, 3) float32", "(6, 5) float32"),
        ("head.bias", "(3) float32", "(5) float32"),
    ]
    assert changed.appeared == ("extra.kernel", "extra.bias")
    assert [one.path for one in changed.types] == ["body.norm"]
    assert before.diff(tn.Chain(stem=model.stem)).went[0] == "body.layer_1.kernel"
    assert json.loads(json.dumps(changed.to_dict()))["appeared"] == ["extra.kernel", "extra.bias"]
    text = str(changed)
    assert "4 became frozen:\n* stem.conv.kernel" in text
    assert "head.bias: (3) float32 → (5) float32" in text


def test_a_summary_keeps_no_array_and_no_layer() -> None:
    import gc
    import weakref

    model = reference()
    shown = summary(model, columns=["why", "dtype", "mode"])
    watch = weakref.ref(model)
    del model
    gc.collect()
    assert watch() is None
    assert shown.diff(reference()).frozen == ()


@pytest.mark.parametrize(
    "asked",
    [{}, {"depth": 1}, {"collapse": True}, {"columns": ["why", "mode", "dtype", "statistics", "layer"]}, {"layers": "stem", "sort": "bytes"}],
    ids=str,
)
def test_json_is_of_the_form_that_the_docs_tell(asked: dict[str, Any]) -> None:
    model = blocks() if "collapse" in asked else reference()
    freeze(model, layers=first(1))
    data = json.loads(summary(model, **asked).to_json())
    jsonschema.Draft202012Validator(SCHEMA).validate(data)
    assert {*asked.get("columns", [])} - {"layer"} <= data["layers"][0].keys()
    broken = {**data, "layers": [{**data["layers"][0], "status": "iced"}]}
    assert list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(broken))


def test_a_terminal_gets_colour_and_a_pipe_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(file: io.StringIO) -> str:
        summary(reference()).show(file)
        return file.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mtrainable" in shown(Terminal())
    assert "\x1b[" not in shown(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(Terminal()).replace("\x1b[3m", "")


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_table_is_as_wide_as_the_terminal_at_most(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, str(summary(reference(), columns=["layer", "path", "type", "kind", "parameters", "bytes", "status"])).splitlines())) <= width


def by_rich(found: Summary, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(found)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()


NAMES = strategies.text(strategies.sampled_from("ab é漢\n\t{}[]`|👍_"), min_size=1, max_size=30)


@given(strategies.lists(NAMES, max_size=4, unique=True), strategies.integers(60, 220), strategies.booleans())
@settings(deadline=None, max_examples=15)
def test_plain_lines_are_what_rich_prints(names: list[str], width: int, wordy: bool) -> None:
    model = tn.Chain(**{name: tn.Chain(inner=tn.Dense(30, 40, RNG), norm=tn.BatchNorm(4, RNG)) for name in names}, plain=tn.Relu())
    freeze(model, layers=kind("batch_norm") | "plain", params=None) if names else None
    columns = ["layer", "path", "type", "kind", "parameters", "bytes", "status", "why"] if wordy else None
    for found in (summary(model, columns=columns), summary(model, columns=columns, sort="bytes")):
        assert plain(found, width) == by_rich(found, width)


def test_printing_many_rows_costs_as_many_times_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    def cost(count: int) -> float:
        found = summary(tn.Chain(**{f"layer_{i}": tn.Dense(1, 1, RNG) for i in range(count)}))
        return min(timeit.repeat(lambda: (str(found), found._repr_html_()), timer=time.process_time, number=1, repeat=3))

    assert cost(4_000) < 16 * cost(500)


def test_square_brackets_are_no_markup() -> None:
    assert "[red]x[/red]" in str(summary(tn.Chain(**{"[red]x[/red]": tn.Dense(1, 1, RNG)})))


class Page(HTMLParser):
    """Reads a page: its elements, its text outside of scripts, and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in {"meta", "input", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.texts.append(data)


def test_a_notebook_gets_a_tree_to_fold_in_which_everything_is_escaped() -> None:
    model = tn.Chain(**{EVIL.replace(".", ""): tn.Chain(inner=tn.Dense(1, 1, RNG)), "plain": tn.Relu()})
    freeze(model, layers="**.inner", params="bias")
    page = Page(summary(model, columns=["layer", "status", "why"])._repr_html_())
    assert not page.open
    assert [tag for tag, _ in page.tags].count("details") == 2
    assert [tag for tag, _ in page.tags].count("summary") == 2
    assert {tag for tag, _ in page.tags} == {"div", "style", "strong", "details", "summary", "span", "p", "br"}
    assert EVIL in page.texts
    assert "freeze(layers='**.inner', params='bias')" in page.texts


def test_markdown_is_a_table_of_as_many_cells_whatever_names_hold() -> None:
    model = tn.Chain(**{EVIL: tn.Dense(1, 1, RNG), "__init__": tn.Relu(), "two\nlines": tn.Relu()})
    table = [line for line in summary(model).to_markdown().splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [5] * 6
    assert not any("<b>" in line or "<script" in line for line in table)
    assert any("\\_\\_init\\_\\_" in line for line in table)


def page_data(text: str) -> dict[str, Any]:
    page = Page(text)
    assert not page.open
    assert [tag for tag, _ in page.tags].count("script") == 2
    return json.loads(page.scripts[0])


def test_the_page_is_whole_in_itself_and_holds_what_the_table_holds(tmp_path: Path) -> None:
    model = reference()
    freeze(model, layers="stem")
    found = summary(model)
    text = found.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    page = Page(text)
    assert not [attrs for _, attrs in page.tags if attrs.keys() & {"src", "href", "srcset", "action"}]
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp", text)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)
    assert {attrs.get("id") for _, attrs in page.tags} >= {"icicle", "tree", "search", "totals", "data"}
    assert "prefers-color-scheme: dark" in text
    assert {"frozen", "trainable", "partial: some of it frozen"} <= set(page.texts)
    data = page_data(text)
    assert data["counts"] == {"trainable": found.totals.trainable, "frozen": 120, "buffers": found.totals.buffers, "parameters": found.totals.parameters}
    nodes = [(node.get("d", 0), node["p"], node.get("c", 0), node.get("s", "")) for node in data["nodes"] if node.get("p")]
    assert nodes == [(row.depth, row.path, row.parameters, row.status) for row in found.rows if row.path]


def test_a_name_can_not_break_out_of_the_page() -> None:
    model = tn.Chain(**{EVIL: tn.Dense(1, 1, RNG)})
    text = summary(model).to_html()
    assert page_data(text)["nodes"][1]["n"] == EVIL
    assert "alert(1)</script>" not in text
    assert "\u2028" not in text


@pytest.mark.parametrize("asked", [{"layers": kind("batch_norm")}, {"sort": "parameters"}, {"depth": 1}, {"collapse": True}], ids=str)
def test_the_page_and_the_picture_put_any_rows_back_into_a_tree(asked: dict[str, Any]) -> None:
    model = blocks() if "collapse" in asked else reference()
    found = summary(model, **asked)
    nodes = page_data(found.to_html())["nodes"]
    assert {node["p"] for node in nodes if node.get("p")} == {row.path for row in found.rows if row.path}
    above: dict[int, Any] = {}
    inside: dict[int, int] = {}
    for node in nodes:
        depth = node.get("d", 0)
        above[depth] = node
        if depth:
            parent = above[depth - 1]
            inside[id(parent)] = inside.get(id(parent), 0) + node.get("c", 0)
            assert inside[id(parent)] <= parent["c"]


@pytest.mark.parametrize(("library", "ask"), [("pandas", lambda found: found.to_pandas()), ("matplotlib.pyplot", lambda found: found.plot())])
def test_a_library_that_is_not_there_is_named(library: str, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(errors.BackendError, match="(?s)not installed.*pip install"):
        ask(summary(reference()))


def test_the_default_summary_opens_no_room_that_it_does_not_need() -> None:
    program = (
        "import sys, toynet as tn, numpy as np, unifreeze\n"
        "unifreeze.summary(tn.Chain(a=tn.Dense(1, 1, np.random.default_rng(0)))).totals\n"
        "print(sorted(name for name in sys.modules if name.startswith(('unifreeze._summary', 'rich', 'pandas', 'matplotlib'))))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert not {"rich", "pandas", "matplotlib", "unifreeze._summary.page", "unifreeze._summary.html", "unifreeze._summary.diff"} & set(eval(loaded))


def test_a_summary_can_be_made_by_hand_but_not_compared() -> None:
    found = summary(reference())
    with pytest.raises(errors.ArgumentError, match="knows no arrays"):
        Summary(found.label, found.rows, found.totals).diff(found)
