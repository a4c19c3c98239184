"""`testing.report`, the command line, and `testing.parametrize`: how the laws are run and told."""

import html.parser
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from jax import ShapeDtypeStruct

import jaxbind
from jaxbind import testing
from jaxbind.testing.__main__ import main
from jaxbind.testing._check import Check
from jaxbind.testing._evidence import evidence
from jaxbind.testing.laws import CAUSES_FIRST, LAWS

ROOT = Path(__file__).parents[1]
QUICK = ["abstract", "jvp", "adjoint", "linear"]


def square(name="square"):
    f = jaxbind.bind(lambda x: x * x, "(n)->(n)", name=name)
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    return f


def wrong(name="wrong"):
    f = jaxbind.bind(lambda x: x * x, "(n)->(n)", name=name)
    f.def_jvp(lambda p, t: p[0] * t[0])
    return f


def without_signature(name="shapeless"):
    return jaxbind.bind(
        lambda x: 2 * x, out=lambda x: ShapeDtypeStruct(x.shape, x.dtype), name=name
    )


@pytest.fixture(scope="module")
def good():
    return testing.report(square(), laws=QUICK, seed=0, max_examples=20)


@pytest.fixture(scope="module")
def bad():
    return testing.report(square(), wrong("a<b>&c"), laws=QUICK, seed=0, max_examples=20)


# The report ---------------------------------------------------------------------------------------


def test_of_a_right_binding(good):
    assert good.ok
    assert good.violations == []
    assert good.counts() == {"passed": 2, "violated": 0, "skipped": 2}
    assert good.seconds > 0
    (row,) = good.rows
    assert row.label == "square" and row.violations == []
    assert row.results["adjoint"].reason.startswith("no rule for reverse mode")
    assert row.results["jvp"].examples > 0


def test_of_a_wrong_binding(bad):
    assert not bad.ok
    assert bad.counts() == {"passed": 3, "violated": 1, "skipped": 4}
    (violation,) = bad.violations
    assert isinstance(violation, testing.LawViolation)
    assert violation.law == "jvp" and violation.binding == "a<b>&c"
    assert violation.diagnosis.kind == "factor"
    assert [row.label for row in bad.rows] == ["square", "a<b>&c"]
    assert bad.rows[1].violations == [violation]


def test_violations_are_in_the_order_of_their_causes():
    """The rows are in the order in which the laws are explained."""
    f = jaxbind.bind(lambda x: x + 1, "(n)->(n)", name="f", linear=True)
    f.def_transpose(lambda ct: 2 * ct)
    report = testing.report(f, laws=["adjoint", "linear"], seed=0, max_examples=20)
    assert list(report.rows[0].results) == ["adjoint", "linear"]
    assert [v.law for v in report.violations] == ["linear", "adjoint"]


def test_text_of_one_binding(good):
    text = str(good)
    assert text == good.text()
    table, summary = text.split("\n\n")
    lines = table.splitlines()
    assert lines[0] == "square"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["✓", "abstract"],
        ["✓", "jvp"],
        ["·", "adjoint"],
        ["·", "linear"],
    ]
    assert "nothing is declared linear or multilinear" in lines[4]
    assert re.search(r"the pushforward is the derivative \(\d+ examples\)$", lines[2])
    assert max(map(len, lines)) <= 140
    assert re.fullmatch(r"1 binding: 2 laws hold, none broken, 2 skipped, in \d+\.\d s", summary)


def test_text_of_several_bindings(bad):
    table, summary, message = str(bad).split("\n\n")
    *head, first, second = table.splitlines()
    assert [re.sub("[│┌ ]", "", line) for line in head] == QUICK
    assert first.split() == ["square", "✓", "✓", "·", "·"]
    assert second.split() == ["a<b>&c", "✓", "✗", "·", "·"]
    for column, (line, mark) in enumerate(zip(head, "✓✗··")):  # each name stands over its marks
        assert line.index("┌") == len("square") + 2 + 2 * column
        assert second[line.index("┌")] == mark
    assert re.match(r"2 bindings: 3 laws hold, 1 broken, 4 skipped, in ", summary)
    assert message == str(bad.violations[0])


def test_colour(good, bad):
    for report in (good, bad):
        assert "\33" not in report.text()
        painted = report.text(colour=True)
        assert re.sub("\33\\[[0-9;]*m", "", painted) == report.text()
        assert "\33[32m✓\33[0m" in painted
        assert painted.count("\33[0m") * 2 == painted.count("\33")
    assert "\33[1;31m✗\33[0m" in bad.text(colour=True)
    assert "\33[1;31ma<b>&c violates `jvp`" in bad.text(colour=True)


def test_nothing():
    report = testing.report()
    assert report.ok and str(report).startswith("\n\n0 bindings: 0 laws hold")


def test_names_that_occur_twice():
    report = testing.report(square(), wrong("square"), square(), laws=["abstract"], max_examples=2)
    assert [row.label for row in report.rows] == ["square", "square@2", "square@3"]


def test_progress():
    calls = []
    testing.report(
        square(), wrong(), laws=QUICK, max_examples=2, progress=lambda *call: calls.append(call)
    )
    order = [law.name for law in CAUSES_FIRST if law.name in QUICK]
    assert [call[:2] for call in calls] == [(f, law) for f in ("square", "wrong") for law in order]
    assert [call[2] for call in calls] == list(range(8))
    assert {call[3] for call in calls} == {8}


def test_laws_and_skip():
    report = testing.report(square(), laws=QUICK, skip=["jvp"], max_examples=2)
    assert list(report.rows[0].results) == ["abstract", "adjoint", "linear"]
    report = testing.report(square(), skip=set(LAWS) - {"jvp"}, max_examples=2)
    assert list(report.rows[0].results) == ["jvp"]


def test_report_refuses():
    with pytest.raises(ValueError, match=r"no law 'jvq'; there are abstract, complete, "):
        testing.report(square(), laws=["jvq"])
    with pytest.raises(ValueError, match="no law 'jvq'"):
        testing.report(square(), skip=["jvq"])
    with pytest.raises(TypeError, match=re.escape("give several laws as a list: laws=['jvp']")):
        testing.report(square(), laws="jvp")
    with pytest.raises(TypeError, match=r"examples.*; the keywords are inputs, static, elements"):
        testing.report(square(), examples=3)
    with pytest.raises(ValueError, match=r"shapeless has no signature .* Give inputs="):
        testing.report(without_signature(), laws=["jvp"])
    with pytest.raises(TypeError, match="got a function"):
        testing.report(lambda x: x)


@pytest.mark.parametrize(
    ("keywords", "kind", "text"),
    [
        ({"seed": -1}, ValueError, "seed=-1; it must be at least 0"),
        ({"seed": 1.5}, TypeError, "seed=1.5; it must be an integer"),
        ({"max_examples": 0}, ValueError, "max_examples=0; it must be at least 1"),
        ({"max_examples": True}, TypeError, "max_examples=True; it must be an integer"),
        ({"rtol": -1e-3}, ValueError, "rtol=-0.001; it must be a number that is not negative"),
        ({"atol": "tiny"}, TypeError, "atol='tiny'; it must be a number"),
        ({"rtol": True}, TypeError, "rtol=True; it must be a number"),
        ({"atol": np.nan}, ValueError, "atol=nan; it must be a number that is not negative"),
        ({"static": 3}, TypeError, "static=3; it must be a mapping of static keywords or a list"),
        ({"static": "ab"}, TypeError, "static='ab'; it must be a mapping of static keywords"),
        ({"static": [{}, 3]}, TypeError, "static=[{}, 3]; it must be a mapping"),
        ({"laws": 3}, TypeError, "laws=3; it must be a list of the names of laws"),
    ],
)
def test_options_that_cannot_be(keywords, kind, text):
    for check in (testing.check, testing.report, testing.using, testing.parametrize):
        with pytest.raises(kind, match=f"jaxbind.testing: {re.escape(text)}"):
            check(square(), **keywords)


def test_nothing_is_tried_if_one_of_several_cannot_be():
    calls = []
    with pytest.raises(ValueError, match="shapeless has no signature"):
        testing.report(square(), without_signature(), progress=lambda *call: calls.append(call))
    assert not calls


# inputs= --------------------------------------------------------------------------------------------


def test_inputs_as_given():
    seen = []

    def function(x):
        seen.append(x.shape)
        return 2 * x

    f = jaxbind.bind(
        function, out=lambda x: ShapeDtypeStruct(x.shape, x.dtype), linear=True, name="f"
    )
    arrays = st.sampled_from([(np.ones((2, 3)),), (np.zeros(5),)])
    testing.check(f, inputs=arrays, laws=["abstract", "linear"], max_examples=10)
    assert set(seen) == {(2, 3), (5,)}


@pytest.mark.parametrize(
    "given, says",
    [
        ((np.ones(3),), "is a tuple; it must be a Hypothesis strategy of argument tuples"),
        (st.just(np.ones(3)), "inputs= for shapeless drew a ndarray; it must draw tuples"),
    ],
    ids=["no strategy", "no tuple"],
)
def test_inputs_refused(given, says):
    with pytest.raises(TypeError, match=re.escape(says)):
        testing.check(without_signature(), inputs=given, laws=["jit"])


# Pages and pictures -------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The elements of a page, and that they are closed."""

    VOID = ("meta", "br", "hr", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.data = [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.data[tag] = self.data.get(tag, "") + data


@pytest.fixture(scope="module")
def page(bad, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    bad.to_html(str(path))
    return path.read_text(encoding="utf-8")


def test_page_is_whole(page):
    found = Page(page)
    assert found.open == []
    assert page.startswith("<!doctype html>")
    assert found.tags.count("svg") == 2
    assert found.tags.count("table") == 1
    assert found.tags.count("tr") == 3
    assert "2 bindings: 3 laws hold, 1 broken" in found.data["p"]


def test_page_loads_nothing(page):
    found = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    for name, value in found.attributes:
        if name in ("src", "href", "xlink:href", "data", "action"):
            assert value.startswith(("#", "data:")), value
    assert "@import" not in page
    assert not re.search(r"url\((?!#|data:)", page)


def test_page_escapes(page, bad):
    found = Page(page)
    assert "a<b>&c" in found.data["title"]
    assert found.data["pre"] == str(bad.violations[0])
    assert "a<b>" not in page and "a&lt;b&gt;&amp;c" in page
    assert "linear" in found.data["dt"]
    assert LAWS["adjoint"].statement in found.data["dd"]


def test_page_has_the_marks_and_their_reasons(page):
    classes = [value for name, value in Page(page).attributes if name == "class"]
    assert [c for c in classes if c in ("passed", "violated", "skipped")] == [
        *("passed", "passed", "skipped", "skipped"),
        *("passed", "violated", "skipped", "skipped"),
    ]
    titles = [value for name, value in Page(page).attributes if name == "title"]
    assert any(title.startswith("jvp: got  J v = ") for title in titles)
    assert "linear: nothing is declared linear or multilinear" in titles


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def test_plot(bad, good, tmp_path):
    path = tmp_path / "report.png"
    good.plot(path)
    height, width, _ = pixels(path).shape
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert width > 1500 and height > 400
    assert np.ptp(pixels(path)[..., :3]) > 0.9  # something is drawn
    bad.plot(str(path))  # a line for each binding
    assert pixels(path).shape[1] == width
    assert pixels(path).shape[0] > 1.7 * height


def test_the_picture_is_of_plain_operands():
    """Real ones of moderate size, at which the rule, of either mode, is at the differences."""
    f = jaxbind.bind(lambda x: (np.sin(x), np.cos(x)), "()->(),()", vectorized=True)
    f.def_vjp(lambda p, w: np.cos(p[0]) * w[0] - np.sin(p[0]) * w[1])
    for seed in range(3):
        drawn = evidence(Check.of(f, {"seed": seed}), [])
        assert drawn is not None and "j" not in drawn.example.partition("array")[2]
        steepest = np.max(np.abs(drawn.jacobians["by differences"]))
        assert steepest <= 1 and drawn.gap < 1e-8


def test_plot_of_a_function_without_derivatives(tmp_path):
    f = jaxbind.bind(lambda x: x + 1, "(n)->(n)", dtype=None, name="f")
    report = testing.report(f, dtypes=np.int64, laws=["abstract"], max_examples=2)
    path = tmp_path / "report.png"
    report.plot(path)
    assert pixels(path).shape[1] > 1500
    report.plot(tmp_path / "report.svg")
    assert "<svg" in (tmp_path / "report.svg").read_text("utf-8")
    report.to_html(tmp_path / "report.html")
    assert "no binding here has a derivative" in (tmp_path / "report.html").read_text("utf-8")


# using --------------------------------------------------------------------------------------------


def test_using():
    def function(x, *, power):
        if np.any(x < 1):
            raise ValueError("too small")
        return x**power

    f = jaxbind.bind(function, "()->()", name="f")
    f.def_jvp(lambda p, t, *, power: power * p[0] ** (power - 1) * t[0])
    powers = [{"power": 2}, {"power": 3}]
    assert testing.using(f, static=powers, elements=st.floats(1, 2)) is f
    report = testing.report(f, laws=["jvp", "static"], max_examples=10)
    assert report.counts() == {"passed": 2, "violated": 0, "skipped": 0}
    with pytest.raises(ValueError, match=r"f raises for every input.*\n.*Give elements="):
        testing.report(f, elements=st.floats(-2, 0), laws=["jit"])  # given here, it is taken
    with pytest.raises(Exception, match="power"):
        testing.report(jaxbind.bind(function, "()->()", name="g"), laws=["jit"])


def test_using_refuses():
    with pytest.raises(TypeError, match="examples"):
        testing.using(square(), examples=3)
    with pytest.raises(TypeError, match="it tests bindings"):
        testing.using(np.sin, dtypes=float)


def legacy():
    """A function of the interface of JAXbind 1.3."""

    def double(out, args, kwargs_dump):
        out[0][()] = 2 * args[0]

    shapes = lambda x: ((x.shape, x.dtype),)
    return jaxbind.get_linear_call(double, double, shapes, shapes)


def test_using_of_a_legacy_function():
    f = legacy()
    assert testing.using(f, inputs=st.tuples(st.just(np.ones(3)))) is f
    assert testing.report(f, laws=["linear"], max_examples=4).counts()["passed"] == 1
    with pytest.raises(TypeError, match="jaxbind.testing: .*'bogus'; the keywords are inputs, "):
        testing.using(f, bogus=1)


# The command line -----------------------------------------------------------------------------------

BINDINGS = """
    import numpy as np
    import jaxbind
    from hypothesis import strategies as st
    from jaxbind import testing
    from jax import ShapeDtypeStruct

    @jaxbind.bind("(n)->(n)")
    def square(x):
        return x * x

    square.def_jvp(lambda p, t: 2 * p[0] * t[0])
    also_square = square

    @jaxbind.bind("(n)->(n)")
    def narrow(x):
        if np.any((x < 1) | (x > 2)):
            raise ValueError("outside")
        return x + 1

    testing.using(narrow, elements=st.floats(1, 2))
    table = {"inner": square}

    class Fourier:
        fft = jaxbind.bind(np.fft.fft, "(n)->(n)", linear=True, name="fft")

    Fourier.fft.def_transpose(lambda ct: ct.shape[-1] * np.fft.ifft(ct))
"""
WRONG = """
    import jaxbind

    @jaxbind.bind("(n)->(n)")
    def cube(x):
        return x**3

    cube.def_jvp(lambda p, t: p[0] ** 2 * t[0])
"""
LEGACY = """
    import jaxbind
    import numpy as np
    from hypothesis import strategies as st
    from jaxbind import testing

    def double(out, args, kwargs_dump):
        out[0][()] = 2 * args[0]

    def shapes(x):
        return ((x.shape, x.dtype),)

    twice = jaxbind.get_linear_call(double, double, shapes, shapes)
    testing.using(twice, inputs=st.tuples(st.just(np.ones(3))))
"""

SHAPELESS = """
    import jaxbind
    from jax import ShapeDtypeStruct

    shapeless = jaxbind.bind(
        lambda x: 2 * x, out=lambda x: ShapeDtypeStruct(x.shape, x.dtype), name="shapeless"
    )
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Modules with bindings, in a directory of their own."""
    sources = {
        "right_things": BINDINGS,
        "wrong_things": WRONG,
        "shapeless_things": SHAPELESS,
        "legacy_things": LEGACY,
        "no_things": "x = 1",
        "broken_things": "import jaxbind\n1 / 0",
        "ending_things": "import sys\nsys.exit(0)",
        "things.inner": WRONG,
    }
    for name, source in sources.items():
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.split(".")[0].endswith("things"):
            del sys.modules[name]


@pytest.fixture
def cli(files, capsys):
    """Run the command line; returns its exit code, output and error output."""

    def call(*arguments):
        code = main([*arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


FEW = ["--max-examples", "4", "--laws", "abstract", "jvp"]


def test_cli_right(cli):
    code, out, err = cli("right_things", *FEW)
    assert code == 0 and err == ""
    *_, square_, narrow, _, summary = out.splitlines()
    assert square_.split()[1:] == ["✓", "✓"]
    assert narrow.split() == ["narrow", "✓", "·"]  # using() is heeded
    assert summary.startswith("2 bindings: 3 laws hold, none broken, 1 skipped")


def test_cli_names(cli):
    """A binding with a second name is checked once, under the name that it was given first."""
    _, out, _ = cli("right_things", "--laws", "abstract", "--max-examples", "1")
    assert "\nsquare" in out and "also_square" not in out


def test_cli_finds_legacy_functions(cli):
    for target in ("legacy_things", "legacy_things:twice"):
        code, out, err = cli(target, "--laws", "linear", "--max-examples", "2")
        assert code == 0 and err == "" and out.startswith("twice\n  ✓ linear")


def test_cli_wrong(cli):
    code, out, err = cli("wrong_things", *FEW, "--seed", "7")
    assert code == 1 and err == ""
    assert out.startswith("cube\n  ✓ abstract ")
    assert "\n\ncube violates `jvp`: the pushforward is the derivative\n  at   cube(" in out
    assert "  def_jvp gives 1/3 times what it should." in out
    assert "seed=7" in out and "\33" not in out


def test_cli_seed(cli):
    def message():
        arguments = ("--laws", "jvp", "--max-examples", "4", "--seed", "3")
        return cli("wrong_things", *arguments)[1].split("\n\n")[2]

    assert message() == message()


@pytest.mark.parametrize(
    "target, label",
    [
        ("wrong_things.py", "cube"),
        ("./wrong_things.py", "cube"),
        ("wrong_things:cube", "cube"),
        ("wrong_things.py:cube", "cube"),
        ("things.inner", "cube"),
        ("things/inner.py", "cube"),
        ("right_things:Fourier.fft", "Fourier.fft"),
    ],
)
def test_cli_targets(cli, target, label):
    code, out, err = cli(target, "--laws", "abstract", "--max-examples", "1")
    assert code == 0 and err == ""
    assert out.startswith(f"{label}\n  ✓ abstract ")


def test_cli_several_targets(cli):
    code, out, _ = cli("right_things:square", "wrong_things", *FEW)
    assert code == 1
    assert [line.split() for line in out.splitlines()[2:4]] == [
        ["square", "✓", "✓"],
        ["cube", "✓", "✗"],
    ]


def test_cli_max_examples(cli):
    _, out, _ = cli("right_things:square", "--laws", "jvp", "--max-examples", "3")
    few = int(re.search(r"\((\d+) examples", out)[1])
    _, out, _ = cli("right_things:square", "--laws", "jvp", "--max-examples", "60")
    assert 0 < few <= 6 < 30 < int(re.search(r"\((\d+) examples", out)[1])


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nothing_of_the_kind"], "cannot import nothing_of_the_kind: ModuleNotFoundError"),
        (["broken_things"], "cannot import broken_things: ZeroDivisionError: division by zero"),
        (["broken_things.py"], "cannot import broken_things.py: ZeroDivisionError"),
        (["ending_things"], "cannot import ending_things: SystemExit: 0"),
        (["nothing.py"], "there is no file nothing.py"),
        (["no_things"], "no_things defines no bindings (jaxbind.bind) at its top level"),
        (["right_things:cube"], "right_things has no cube"),
        (["right_things:Fourier.dft"], "right_things has no Fourier.dft"),
        (["right_things:table"], "right_things:table is a dict; it must be a binding"),
        (["right_things", "--laws", "jvq"], "no law 'jvq'; there are abstract, complete"),
        (["right_things", "--max-examples", "0"], "--max-examples 0: it must be at least 1"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_cli_refuses(cli, arguments, says):
    code, out, err = cli(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("python -m jaxbind.testing: ") and says in err
    assert len(err.splitlines()) == 1


def test_cli_cannot_check(cli):
    """A binding with out= and without inputs; the others are checked all the same."""
    code, out, err = cli("shapeless_things", *FEW)
    assert code == 2 and out == ""
    assert "shapeless cannot be checked: jaxbind.testing: shapeless has no signature" in err
    assert "Give inputs=" in err
    code, out, err = cli("shapeless_things", "right_things:square", *FEW)
    assert code == 2 and out.startswith("square\n")
    code, out, err = cli("shapeless_things", "wrong_things", *FEW)
    assert code == 1 and "shapeless cannot be checked" in err and "violates" in out


def test_cli_files_that_cannot_be_written(cli, files):
    for option in ("--html", "--plot"):
        code, out, err = cli("right_things", *FEW, option, "nowhere/a.html")
        assert code == 2 and out == "" and "nowhere/a.html cannot be written" in err
    (files / "taken.html").mkdir()
    code, out, err = cli("right_things", *FEW, "--html", "taken.html")
    assert code == 2 and "2 bindings" in out and "taken.html cannot be written" in err
    code, out, err = cli("wrong_things", *FEW, "--plot", "a.nothing")
    assert code == 1 and "a.nothing cannot be written" in err


def test_cli_files_without_matplotlib(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = cli("right_things", *FEW, "--html", "a.html")
    assert code == 2 and "2 bindings" in out and "a.html cannot be written: plots need" in err


def test_cli_files(cli, files):
    code, out, _ = cli("wrong_things", *FEW, "--html", "a.html", "--plot", "a.png")
    assert code == 1
    assert "\nwrote a.html\n" in out and "\nwrote a.png\n" in out
    assert "cube violates" in (files / "a.html").read_text("utf-8")
    assert pixels(files / "a.png").shape[1] > 1500


def test_cli_usage(cli, capsys):
    for arguments in ([], ["right_things", "--seed", "x"], ["right_things", "--colour"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "usage: python -m jaxbind.testing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("TARGET", "--laws", "--max-examples", "--seed", "--html", "--plot"):
        assert option in text


def python(*arguments, cwd, **environment):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
    )


def test_in_a_process_of_its_own(files):
    """Modules of the working directory are found, as ``python -m`` does."""
    done = python("-m", "jaxbind.testing", "wrong_things", *FEW, cwd=files)
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.startswith("cube\n  ✓ abstract ")
    assert "Failing test case" not in done.stdout and "ypothesis" not in done.stdout


# pytest -------------------------------------------------------------------------------------------


def ids(mark):
    (_, items), names = mark.mark.args, [item.id for item in mark.mark.args[1]]
    assert len(set(names)) == len(items)
    return names


def test_parametrize_ids():
    assert ids(testing.parametrize(square())) == [f"square-{law}" for law in LAWS]
    assert ids(testing.parametrize(square(), wrong(), laws=["jvp", "abstract"])) == [
        "square-abstract",
        "square-jvp",
        "wrong-abstract",
        "wrong-jvp",
    ]
    assert ids(testing.parametrize(square(), skip=set(LAWS) - {"jvp"})) == ["square-jvp"]


def test_parametrize_names_that_occur_twice():
    found = ids(testing.parametrize(square(), wrong("square"), laws=["jvp"]))
    assert found == ["square-jvp", "square@2-jvp"]


def test_parametrize_pairs():
    """A binding and its own keywords, which go before those for all."""
    mark = testing.parametrize(
        (square(), {"laws": ["jvp"]}), wrong(), laws=["abstract"], max_examples=3
    )
    assert ids(mark) == ["square-jvp", "wrong-abstract"]


def test_parametrize_refuses():
    with pytest.raises(TypeError, match="it tests bindings"):
        testing.parametrize(np.sin)
    with pytest.raises(TypeError, match=r"examples.*; the keywords are inputs"):
        testing.parametrize(square(), examples=3)
    with pytest.raises(TypeError, match=r"examples.*; the keywords are inputs"):
        testing.parametrize((square(), {"examples": 3}))
    with pytest.raises(ValueError, match="no law 'jvq'"):
        testing.parametrize(square(), laws=["jvq"])
    with pytest.raises(ValueError, match="no law 'jvq'"):
        testing.parametrize((square(), {"skip": ["jvq"]}))
    with pytest.raises(TypeError, match=re.escape("['jvp']")):
        testing.parametrize(square(), laws="jvp")


def items(*bindings, **keywords):
    mark = testing.parametrize(*bindings, **keywords)
    return {item.id: item.values[0] for item in mark.mark.args[1]}


def test_items():
    found = items(square(), wrong(), laws=["jvp", "linear"], max_examples=20)
    found["square-jvp"]()
    with pytest.raises(testing.LawViolation, match="wrong violates `jvp`"):
        found["wrong-jvp"]()
    with pytest.raises(pytest.skip.Exception, match="nothing is declared linear or multilinear"):
        found["square-linear"]()
    assert repr(found["wrong-jvp"]) == "<wrong: the pushforward is the derivative>"


def test_nothing_is_called_while_tests_are_collected():
    called = []

    def function(x):
        called.append(x)
        return x.copy()

    testing.parametrize(jaxbind.bind(function, "(n)->(n)", name="f"))
    testing.parametrize(without_signature())
    assert not called


PYTEST = """
    import jaxbind
    import numpy as np
    import pytest
    from jaxbind import testing

    def bound(factor):
        f = jaxbind.bind(lambda x: x * x, "(n)->(n)", name="square")
        f.def_jvp(lambda p, t: factor * p[0] * t[0])
        return f

    LAWS = ["abstract", "jvp", "linear"]

    @testing.parametrize(bound(2), (bound(3), {"seed": 5}), laws=LAWS, max_examples=8)
    def test_laws(law):
        law()
"""


@pytest.mark.parametrize("workers", ["0", "2"], ids=["one process", "xdist"])
def test_pytest(tmp_path, workers):
    """The outcomes, the reasons of those that are skipped, and the message of the one that fails."""
    (tmp_path / "test_bindings.py").write_text(textwrap.dedent(PYTEST))
    options = ["-v", "-rs", "-W", "error", "-p", "no:cacheprovider", "-n", workers]
    done = python("-m", "pytest", *options, "test_bindings.py", cwd=tmp_path)
    out = done.stdout
    assert done.returncode == 1, out + done.stderr
    assert re.search("3 passed, 2 skipped.*|1 failed, 3 passed, 2 skipped", out)
    for name, outcome in {
        "square-abstract": "PASSED",
        "square-jvp": "PASSED",
        "square-linear": "SKIPPED",
        "square@2-abstract": "PASSED",
        "square@2-jvp": "FAILED",
        "square@2-linear": "SKIPPED",
    }.items():
        name = re.escape(f"test_bindings.py::test_laws[{name}]")
        assert re.search(f"{name}.* {outcome}|{outcome} {name}", out), out
    assert "nothing is declared linear or multilinear" in out
    assert re.search(r"E +jaxbind\.testing\.LawViolation: square violates `jvp`: the push", out)
    assert re.search(r"E +def_jvp gives 3/2 times what it should\.", out)
    assert re.search(r"E +reproduce: testing\.check\(square, laws=\['jvp'\], seed=5, ", out)
    assert "hypothesis/" not in out.split("warnings summary")[0]
    assert "Failing test case" not in out and "You can reproduce" not in out
