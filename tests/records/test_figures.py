"""Results as figures: what is drawn is what the result holds, with any token, on any axes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_records import pair, vector
from test_tables import RESULT, RESULTS, VERDICT, displayed

import small
import zeropass as zp
from zeropass.atlas import distributions, summary
from zeropass.errors import BadOption, MissingExtra
from zeropass.records import matplotlib_axes, panels
from zeropass.records.label_places import DOT, free_places
from zeropass.records.matplotlib_text import set_plain
from zeropass.records.panels import AsFigure, AsFigures, Curves, token_label
from zeropass.records.parameters import PairScore, Records, Token
from zeropass.records.sequences import Parameters
from zeropass.tokens.shown import escape

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed_figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw without a display, refuse to show a figure, and close the figures of a test."""
    pyplot.switch_backend("agg")
    monkeypatch.setattr(pyplot, "show", lambda *_, **__: pytest.fail("a figure was shown"))
    yield
    pyplot.close("all")


def drawn(value: AsFigure | AsFigures) -> list[panels.Panel]:
    return [value.panel()] if isinstance(value, AsFigure) else list(value.panels())


def axes_of(plotted: Any) -> list[Axes]:
    return list(np.atleast_1d(plotted))


def written(axes: Axes) -> list[str]:
    """Return all texts of axes."""
    return [text.get_text() for text in axes.findobj(Text)]


@pytest.mark.parametrize("name", ["built", "hostile"])
def test_every_result_with_panels_is_drawn(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    drawable = [v for v in (*displayed(request.getfixturevalue(name)), *RESULTS) if isinstance(v, AsFigure | AsFigures)]
    names = {type(value).__name__ for value in drawable}
    expected = {"VectorRecord", "PairRecord", "SvdRecord", "Records", "FindRecord", "Overview", "LayerRecord", "Spread"}
    expected |= {"Cloud", "NeighbourRecord", "Verdicts", "Alignment", "Matches", "Evidence", "Stitch", "Parameters"}
    assert expected <= names
    for value in {type(value): value for value in drawable}.values():
        count = len(drawn(value)) if not isinstance(value, Parameters) else 0
        if not count:
            continue  # neurons by the hundred, or evidence of another metric
        plotted = value.plot()
        assert isinstance(plotted, Axes if isinstance(value, AsFigure) else np.ndarray)
        axes = axes_of(plotted)
        assert len(axes) == count
        for panel, place in zip(drawn(value), axes, strict=True):
            assert place.get_title(loc="left").replace("\n", " ").startswith(panel.title[:10])
        axes[0].figure.savefig(tmp_path / "figure.png", dpi=30)
        pyplot.close(axes[0].figure)


def test_the_bars_of_a_list_are_its_z(built: small.Built) -> None:
    record = built.lens.explain("L1.ff.2.gate", k=7)[0]
    axes = record.plot()
    assert [bar.get_width() for bar in axes.patches] == [token.z for token in (*record.top, *record.bottom)]
    labels = [text.get_text() for text in axes.texts][: len(axes.patches)]
    assert labels == [token_label(token.token) for token in (*record.top, *record.bottom)]
    assert axes.get_title(loc="left") == "L1.ff.2 gate sees"
    assert {line.get_xdata()[0] for line in axes.lines} == {-record.threshold, 0, record.threshold}
    low, high = axes.get_xlim()
    assert low == -high, "the poles have one scale"


def test_a_list_that_says_little_is_grey() -> None:
    telling, faint = vector("a"), vector("a", "b")
    assert faint.says_little
    colours = {bar.get_facecolor()[:3] for bar in faint.plot().patches}
    assert colours == {to_rgb(matplotlib_axes.PALE)}
    assert "no token stands out" in written(faint.plot())
    assert telling.notes == ("no token stands out",)


def test_a_map_shows_every_pair_that_has_room(built: small.Built) -> None:
    record = built.lens.explain("L1.attn.2.vo", k=60)[0]
    panel = record.panel()
    values = np.array(panel.values)
    assert max(values.shape) <= 18
    assert np.isfinite(values).any(0).all()
    assert np.isfinite(values).any(1).all()
    scores = {(token_label(p.left.token), token_label(p.right.token)): p.score for p in record}
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        assert values[row, column] == scores[panel.rows[row], panel.columns[column]]
    axes = record.plot()
    (mesh,) = axes.findobj(QuadMesh)
    assert np.ma.allclose(mesh.get_array().reshape(values.shape), np.ma.masked_invalid(values))
    axes.figure.canvas.draw()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(panel.rows)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(panel.columns)


def test_a_map_has_the_first_pairs_with_few_tokens() -> None:
    pairs = [PairScore(Token(a, f"a{a}"), Token(b, f"b{b}"), 9.0) for a, b in ((0, 0), (1, 1), (2, 0), (0, 1), (1, 2))]
    record = replace(pair("a"), pairs=tuple(pairs))
    assert [(p.left.id, p.right.id) for p in record.within(2)] == [(0, 0), (1, 1), (0, 1)]
    assert record.within(3) == record


def test_one_pair_is_a_map_of_one_cell() -> None:
    axes = pair("a").plot()
    axes.figure.canvas.draw()
    assert axes.get_xlim() == (0, 1)


def test_the_map_of_a_model_has_its_cells(built: small.Built) -> None:
    overview = summary.overview(built.atlas, "read", "token", "strength")
    panel = overview.panel()
    assert panel.rows[:2] == ["FF", "head 0"]
    assert panel.columns == ["0", "1", "2"]
    for cell in overview:
        assert panel.values[overview.parts.index(cell.part)][overview.layers.index(cell.layer)] == cell.mean


def test_a_spread_counts_its_tokens(built: small.Built) -> None:
    spread = distributions.spreads(built.atlas, "L1.ff.2")[0]
    axes = spread.plot()
    assert [bar.get_height() for bar in axes.patches] == list(spread.counts)
    assert axes.patches[0].get_x() == pytest.approx(spread.low)
    assert axes.patches[0].get_width() == pytest.approx(spread.step)


def test_parameters_of_a_word_stand_at_their_layer(built: small.Built) -> None:
    record = built.atlas.find("babade")
    dots = record.panel().dots
    assert [(dot.x, dot.y) for dot in dots] == [(int(match.address[1]), match.z) for match in record]
    axes = record.plot()
    places = {(x, y) for line in axes.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
    assert places == {(dot.x, dot.y) for dot in dots}


def test_evidence_stands_over_its_nulls() -> None:
    (panel,) = replace(RESULTS[0], results=(replace(RESULT, metric="spearman"),)).panels()
    assert isinstance(panel, Curves)
    assert panel.title == "gate, token: current"
    assert [curve.name for curve in panel.curves] == ["measured", "noise"]
    assert [curve.null for curve in panel.curves] == [False, True]
    assert (panel.curves[0].low, panel.curves[0].y, panel.curves[0].high) == ([0.4], [0.5], [0.6])


def test_figures_go_on_axes_that_are_given(built: small.Built) -> None:
    records = built.lens["L1.ff.2"][:4]
    figure = Figure()
    grid = figure.subplots(2, 2)
    assert list(records.plot(grid)) == list(grid.flat)
    assert built.lens["L1.ff.2"][0].plot(grid[0, 0]) is grid[0, 0]
    assert pyplot.get_fignums() == [], "a figure that is given needs none of pyplot"
    part = figure.subfigures(1, 1).subplots()
    assert built.atlas.find("babade").plot(part) is part
    with pytest.raises(BadOption, match="holds 3 axes, and there are 4 panels"):
        records.plot(grid.flat[:3])
    with pytest.raises(BadOption, match="holds a value of type Figure; it takes Axes"):
        records[0].plot(figure)
    with pytest.raises(BadOption, match="of type int"):
        records.plot([1, 2, 3, 4])


def test_too_many_panels_are_refused(built: small.Built) -> None:
    with pytest.raises(BadOption, match=r"at most 64 panels.*slice \[:4\]"):
        built.lens.neurons(0).plot()
    with pytest.raises(BadOption, match="nothing to draw"):
        Records([]).plot()
    assert len(built.lens.neurons(1, "gate").strongest(2).plot()) == 4


# --- Text -------------------------------------------------------------------------------------------------------------

TOKENS = ("$x$", "$", r"\$a$_b$", "_", "^{x}", r"\frac{a}{b}", "␣a  b", " a", "a ", "_nolegend_", "%", "~", "a&b", "#")
TOKENS += ("我们", "이것", "עברית", "العربية", "नमस्ते", "e\u0301", "😀", "\u0301", "", " ", "\u200f\u202e", "\ud800")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_token_is_drawn_as_it_is(kind: str, tmp_path: Path) -> None:
    texts = (*TOKENS, *small.HOSTILE)
    plotted = Records([vector(*texts), *(pair(text) for text in texts[:3])]).plot()
    plotted[0].figure.savefig(tmp_path / f"figure.{kind}")
    labels = [label for axes in plotted for label in axes.findobj(Text) if label.get_text() and label.get_visible()]
    for text in texts:
        if text.isascii():
            shown = [label for label in labels if label.get_text() == token_label(text)]
            assert shown or not text
            assert not any(label.get_parse_math() or label.get_usetex() for label in shown)
    assert all(line.isprintable() for label in labels for line in label.get_text().split("\n"))


def test_a_user_of_tex_sees_tokens_as_they_are(built: small.Built) -> None:
    with mpl.rc_context({"text.usetex": True, "font.size": 20}):
        axes = vector("$x$").plot()
    assert not any(label.get_usetex() for label in (*axes.texts, axes.title, axes._left_title) if label.get_text())


@given(st.text(max_size=12))
def test_letters_that_no_font_has_are_escaped(text: str) -> None:
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    artist = figure.text(0.1, 0.1, "")
    shown = escape(text)
    set_plain(artist, shown)
    canvas.draw()
    if shown.isascii():
        assert artist.get_text() == shown
    assert len(artist.get_text()) <= max(len(shown), panels.LONGEST)


def test_a_font_that_has_a_letter_is_used() -> None:
    artist = Figure().text(0, 0, "", fontfamily="cmr10")  # Computer Modern has no Cyrillic
    set_plain(artist, "да")
    assert artist.get_text() == "да"
    assert len(artist.get_fontfamily()) > 1
    artist = Figure().text(0, 0, "")
    set_plain(artist, "x\U0001f9ff")  # a letter that no font of matplotlib's own has
    assert artist.get_text() in {"x\U0001f9ff", r"x\U0001f9ff"}


POINTS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=12)


@given(POINTS, st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=12, max_size=12))
def test_labels_cover_nothing(points: list[tuple[int, int]], sizes: list[tuple[int, int]]) -> None:
    inside = (-10, -10, 210, 210)
    boxes = dict(free_places(points, sizes, inside))
    for number, (left, low, right, high) in boxes.items():
        assert (right - left, high - low) == pytest.approx(sizes[number])
        assert -10 <= left < right <= 210
        assert -10 <= low < high <= 210
        for other in boxes.keys() - {number}:
            a, b, c, d = boxes[other]
            assert not (left < c and a < right and low < d and b < high)
        for x, y in points:
            if (x, y) != points[number]:
                assert not (left < x + DOT and x - DOT < right and low < y + DOT and y - DOT < high)


def test_names_from_a_file_are_drawn_as_they_are() -> None:
    wild = [replace(VERDICT, role="$x$\x1b[31m" + "y" * 900, frame=f"_{n}\n$", layer=n // 2) for n in range(20)]
    axes = replace(RESULTS[1], kinds=tuple(wild)).plot()[0]
    axes.figure.canvas.draw()
    assert axes.get_title(loc="left").startswith(r"$x$\x1b[31myyy")
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[0] == r"_0\n$"
    assert not any(text.get_parse_math() for text in axes.get_legend().get_texts())


def test_a_frame_has_one_colour_in_every_panel() -> None:
    kinds = [replace(VERDICT, role=role, frame=frame) for role in ("gate", "up") for frame in ("seen", "token")]
    kinds.append(replace(VERDICT, role="o", frame="seen"))
    colours: dict[str, set[str]] = {}
    for axes in replace(RESULTS[1], kinds=tuple(kinds)).plot():
        for text, line in zip(axes.get_legend().get_texts(), axes.get_legend().get_lines(), strict=True):
            colours.setdefault(text.get_text(), set()).add(line.get_color())
    assert {name: len(shades) for name, shades in colours.items()} == {"seen": 1, "token": 1, "null of each": 1}
    assert colours["seen"] != colours["token"]


def test_numbers_that_are_not_finite_have_no_length() -> None:
    record = vector("a", "b", "c")
    wild = tuple(replace(token, z=z) for token, z in zip(record.top, (np.inf, np.nan, 2.0), strict=True))
    axes = replace(record, top=wild, bottom=()).plot()
    axes.figure.canvas.draw()
    assert [bar.get_width() for bar in axes.patches] == [0, 0, 2.0]
    empty = replace(record, top=(), bottom=()).plot()
    empty.figure.canvas.draw()
    blank = replace(pair("a"), pairs=()).plot()
    blank.figure.canvas.draw()


def test_a_panel_of_no_known_class_is_an_error() -> None:
    with pytest.raises(TypeError, match="no drawing of a Panel"):
        matplotlib_axes.draw(panels.Panel(title=""), Figure().subplots())


# --- Colours ----------------------------------------------------------------------------------------------------------


def lightness(colour: Any) -> float:
    """Return the relative luminance of a colour (WCAG 2)."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))


def contrast(a: Any, b: Any) -> float:
    low, high = sorted((lightness(a), lightness(b)))
    return (high + 0.05) / (low + 0.05)


def test_a_print_in_grey_can_be_read() -> None:
    for bar in (matplotlib_axes.RIGHT, matplotlib_axes.LEFT):
        assert contrast(matplotlib_axes.INK, bar) > 7
    assert contrast(matplotlib_axes.DIM, matplotlib_axes.PALE) > 3
    assert contrast(matplotlib_axes.BLUE, matplotlib_axes.ORANGE) > 1.8, "columns have no marker to tell them apart"
    shades = [lightness(shade[:3]) for shade in colormaps["YlGnBu"](np.linspace(0, 1, 50))]
    assert shades == sorted(shades, reverse=True)
    assert len(set(matplotlib_axes.MARKERS)) == len(matplotlib_axes.COLOURS)


# --- matplotlib itself ------------------------------------------------------------------------------------------------


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "zeropass.records.matplotlib_axes", raising=False)
    with pytest.raises(MissingExtra, match=r"zeropass\[plots\]"):
        vector("a").plot()


def test_matplotlib_is_imported_for_a_figure_alone_and_needs_no_display() -> None:
    code = (
        "import sys\n"
        "import zeropass.records.sequences, zeropass.align.results, zeropass.stitch.results, zeropass.diff.results\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from zeropass.records.panels import AsFigure, Bars\n"
        "class Result(AsFigure):\n"
        "    def panel(self):\n"
        "        return Bars('title', right=(('label', 1.0),))\n"
        "Result().plot().figure.canvas.draw()\n"
    )
    line = [sys.executable, "-W", "error", "-c", code]
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.real
def test_figures_of_a_real_atlas(real_atlas: Path, tmp_path: Path) -> None:
    atlas = zp.open_atlas(real_atlas)
    record = atlas.explain("L26.ff.1189.value", k=10)[-1]
    assert {token_label(token.token) for token in record.bottom} <= {*written(record.plot())}
    axes = distributions.clouds(atlas, "L26.ff.1189")[-1].plot()
    axes.figure.savefig(tmp_path / "cloud.pdf")
    labels = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in labels]
    assert len(labels) > 5
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
