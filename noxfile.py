"""The sessions: ``nox -s demo`` shows what unifreeze does, ``nox -s tests`` proves it on every backend. The list of backends stands in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["core", "tests", "lint", "types", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
BACKENDS = [group.removeprefix("test-") for group in PROJECT["dependency-groups"] if group.startswith("test-")]
REPORTS = Path(".conformance")
RAN: list[str] = []
# Their blocks of Python run in the sessions that they name, see conftest.py.
PAGES = ["README.md", *sorted(map(str, Path("docs").glob("*.md")))]
# The pinned frameworks have wheels for this one everywhere.
PYTHON = "3.11"
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "MPLBACKEND": "agg"}
# The models of the tests are small: a second thread waits, and keeps a core busy with it.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Most of the time of these tests is XLA's, and they compile much and run little. What looks at compiled programs compiles them in full, as the deep sweeps do.
# The flag chooses how XLA writes machine code, and leaves the programs as they are. Each took a third of the processor time of such tests away.
COMPILE_QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}
# A framework is a large thing to hold several times; the blocks of a page run in order, in one process.
WORKERS = ["-n", "auto", "--maxprocesses=4", "--dist=loadfile"]

# Long tests of pure logic: the first Python runs them for all.
ONCE = ["-m", "not deep and not once"]


def _pythons() -> list[str]:
    """The Pythons at hand, also those that pyenv keeps off the path."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for folder in sorted(kept.glob("3.1[123].*/bin")):
        os.environ["PATH"] += os.pathsep + str(folder)
    found = [version for version in ("3.11", "3.12", "3.13") if _runs(version)]
    return found or [f"{sys.version_info.major}.{sys.version_info.minor}"]


def _runs(version: str) -> bool:
    for folder in os.environ["PATH"].split(os.pathsep):
        program = shutil.which(f"python{version}", path=folder)
        if program and subprocess.run([program, "--version"], check=False, capture_output=True).returncode == 0:
            # A shim that does not run must not stand before the one that does.
            os.environ["PATH"] = os.pathsep.join([folder, os.environ["PATH"]])
            return True
    return False


PYTHONS = _pythons()


def _install(session: nox.Session, *what: str, group: str = "") -> None:
    packages = nox.project.dependency_groups(PROJECT, group) if group else ()
    # Bytecode of the few modules that are imported is made as they are; of all of them, it takes as long as the rest of the installation.
    session.install("-q", "--no-compile", "-c", "constraints.txt", *what, *packages)


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """The core on the toy backend, with no framework installed."""
    _install(session, ".", "./examples/unifreeze-toy", group="test")
    session.run("python", "-c", "import importlib.util as u; assert not any(map(u.find_spec, ('torch', 'keras', 'jax', 'flax', 'equinox')))")
    also = [*PAGES, "--doctest-modules", "--pyargs", *_doctested()]
    some = [] if session.python == PYTHONS[0] else ONCE
    session.run("pytest", *WORKERS, "tests/core", "examples/unifreeze-toy/tests", *some, *also, *session.posargs, env={"PAGES": "core"})


def _doctested() -> list[str]:
    rooms = ("_tree", "errors", "plugin", "select", "_manager", "_recipe", "_record", "_rows", "_checksum", "_mark", "_digest", "_slots", "_told")
    return [f"unifreeze.{room}" for room in (*rooms, "_summary.columns")]


@nox.session(python="3.11")
def minimums(session: nox.Session) -> None:
    """The core with the oldest versions that pyproject.toml allows."""
    oldest = [need.replace(">=", "==") for need in (*PROJECT["project"]["dependencies"], *nox.project.dependency_groups(PROJECT, "test"))]
    session.install("-q", "--no-compile", ".", "./examples/unifreeze-toy", *oldest)
    session.run("pytest", *WORKERS, "tests/core", "examples/unifreeze-toy/tests", *ONCE, *session.posargs)


@nox.session(python=PYTHON)
@nox.parametrize("backend", BACKENDS, ids=BACKENDS)
def tests(session: nox.Session, backend: str) -> None:
    """The conformance suite and the native tests of one backend, with only its framework installed; a table closes the run."""
    report = REPORTS / f"{backend}.json"
    report.unlink(missing_ok=True)
    RAN.append(backend)
    session.notify("conformance")
    _install(session, ".", group=f"test-{backend}")
    doctests = ["--doctest-modules", "--pyargs", *(f"unifreeze.{room}" for room in ("_api", "_freezing", "_recipe", "_guard", "_audit.verb", "_summary.table"))]
    also = [*PAGES, *(doctests if backend == "torch" else []), f"--conformance={report}"]
    quickly = COMPILE_QUICKLY if backend in {"keras-jax", "jax", "nnx", "equinox"} else {}
    session.run("pytest", *WORKERS, *_files(backend), *also, *session.posargs, env=_environment(backend) | ONE_THREAD | quickly | {"PAGES": backend})


def _files(backend: str) -> list[str]:
    """The tests of a backend: ``test_keras.py``, which runs the suite, and ``test_keras_<idea>.py``."""
    framework = backend.partition("-")[0]
    return [f"tests/test_{framework}.py", *sorted(map(str, Path("tests").glob(f"test_{framework}_*.py")))]


def _environment(backend: str) -> dict[str, str]:
    engine = backend.partition("-")[2]
    return ENVIRONMENT | ({"KERAS_BACKEND": engine} if engine else {})


@nox.session(python=PYTHON)
def port(session: nox.Session) -> None:
    """Correspondence and porting between frameworks: Keras on PyTorch, where its models are built in no time, and on JAX beside models of JAX."""
    _install(session, ".", group="port")
    beside_jax = {"tests/port/test_port.py", *map(str, Path("tests/port").glob("test_jax_*.py"))}
    for engine, files in {"torch": {*map(str, Path("tests/port").glob("test_*.py"))} - beside_jax, "jax": beside_jax}.items():
        session.run("pytest", *WORKERS, *sorted(files), *session.posargs, env=_environment(f"keras-{engine}") | ONE_THREAD | COMPILE_QUICKLY)


@nox.session(python=PYTHON)
def page(session: nox.Session) -> None:
    """The page of a summary in headless Chromium, which must be there: CHROMIUM=… names it, if it is not on the path as chromium."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
        session.error("Chromium is not there. On Debian and Ubuntu: apt-get install chromium. Elsewhere: CHROMIUM=/path/to/chrome nox -s page")
    _install(session, ".", "./examples/unifreeze-toy", group="test")
    session.run("pytest", "tests/page", *session.posargs)


@nox.session(python=PYTHON)
@nox.parametrize("backend", BACKENDS, ids=BACKENDS)
def deep(session: nox.Session, backend: str) -> None:
    """The long sweeps of one backend, of which ``tests`` runs a slice."""
    _install(session, ".", group=f"test-{backend}")
    # 5: a backend without long sweeps.
    session.run("pytest", *_files(backend), "-m", "deep", *session.posargs, env=_environment(backend) | ONE_THREAD, success_codes=[0, 5])


@nox.session(python=False)
@nox.parametrize("backend", ["torch", "jax", "keras-torch", "keras-jax"], ids=["torch", "jax", "keras-torch", "keras-jax"])
def accelerator(session: nox.Session, backend: str) -> None:
    """On a GPU, in the environment that nox runs in: with a framework for that GPU, unifreeze and what the tests need. CI has none."""
    engine = backend.partition("-")[2]
    env = {"KERAS_BACKEND": engine} if engine else {}
    session.run("pytest", f"tests/accelerator/test_{backend.partition('-')[0]}.py", *session.posargs, env=env | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


@nox.session(python=PYTHON)
@nox.parametrize("engine", ["torch", "jax", "tensorflow"], ids=["torch", "jax", "tensorflow"])
def deep_port(session: nox.Session, engine: str) -> None:
    """All pairs of models, and all that ``port`` runs, with Keras on one of its engines."""
    _install(session, ".", *(["tensorflow-cpu"] if engine == "tensorflow" else []), group="port")
    session.run("pytest", "tests/port", "-m", "deep or not deep", *session.posargs, env=_environment(f"keras-{engine}") | ONE_THREAD)


@nox.session(python=PYTHON)
def conformance(session: nox.Session) -> None:
    """Prints backend × check from what the suite just reported. A backend that was asked for and did not run is a failure."""
    _install(session, "rich")
    session.run("python", "docs/conformance.py", *(RAN or BACKENDS))


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Ruff, and who may import whom."""
    _install(session, "-e", ".", group="lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    _install(session, ".", group="types")
    session.run("mypy")


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """The documentation, strictly: a broken link or reference, or a page that is not what the program says now, is an error."""
    _install(session, "-e", ".", "./examples/unifreeze-toy", group="docs")
    session.run("python", "docs/generate.py", "--check")
    session.run("mkdocs", "build", "--strict", "--quiet")


@nox.session(python=PYTHON)
def demo(session: nox.Session) -> None:
    """Freezes the first two layers of a GoogLeNet (Keras on JAX: small to install), trains it, and proves what moved."""
    _install(session, ".[demo]")
    session.run("unifreeze", "demo", *session.posargs, env=ENVIRONMENT | {"KERAS_BACKEND": "jax"})


@nox.session(python=PYTHON)
@nox.parametrize("backend", BACKENDS, ids=BACKENDS)
def examples(session: nox.Session, backend: str) -> None:
    """A whole fine-tuning in two phases on one backend, with its proof. ``nox -s "examples(torch)"`` is the one for PyTorch."""
    _install(session, ".", group=f"test-{backend}")
    name = {"jax": "linen"}.get(backend, backend.partition("-")[0])
    session.run("python", f"examples/with_{name}.py", *session.posargs, env=_environment(backend))


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """Ratios against hand-written loops and against torchinfo."""
    _install(session, ".", group="bench")
    for program in ("import_time", "scale"):
        session.run("python", f"benchmarks/{program}.py", env=ENVIRONMENT)
    for program in ("cost", "distributed"):
        _page(session, f"benchmarks/{program}.py", Path("docs/cost") / f"{program}.md", ENVIRONMENT)


@nox.session(python=PYTHON)
def bench_summary(session: nox.Session) -> None:
    """Summaries beside torchinfo, clu, linen's and nnx's tabulate, Keras's own and loops by hand; and of models of up to 405 billion parameters."""
    _install(session, ".", group="bench-summary")
    env = _environment("keras-jax")
    _page(session, "benchmarks/summary.py", Path("docs/summary/peers.md"), env)
    for framework in ("torch", "jax"):
        _page(session, "benchmarks/summary_scale.py", Path(f"docs/summary/scale_{framework}.md"), env, framework)


@nox.session(python=PYTHON)
def peers(session: nox.Session) -> None:
    """The same scenario in other libraries, each by its own documented call: how far moves what they call frozen; and their side of docs/coming.md."""
    _install(session, ".", group="peers")
    session.run("pytest", "tests/peers", env=ENVIRONMENT)
    _page(session, "benchmarks/peers/table.py", Path("docs/peers/table.md"), ENVIRONMENT)


@nox.session(python=PYTHON)
def pairs(session: nox.Session) -> None:
    """Every pair of models that porting is shown for: certificate, proof by weights, seconds."""
    _install(session, ".", group="port")
    _page(session, "benchmarks/pairs.py", Path("docs/porting/pairs.md"), _environment("keras-torch"))


def _page(session: nox.Session, program: str, page: Path, env: dict[str, str], *arguments: str) -> None:
    """Runs a program whose output is a part of the documentation."""
    page.parent.mkdir(exist_ok=True)
    with page.open("w") as file:
        session.run("python", program, *arguments, stdout=file, stderr=sys.stderr, env=env)
    print(page.read_text())


@nox.session(python=PYTHON)
@nox.parametrize("backend", [name for name in BACKENDS if name.startswith("keras-")], ids=[name for name in BACKENDS if name.startswith("keras-")])
def bench_keras(session: nox.Session, backend: str) -> None:
    """What freezing costs in Keras, against flags set by hand before ``compile``: steps, toggles, summaries."""
    _install(session, ".", group=f"test-{backend}")
    _page(session, "benchmarks/keras_cost.py", Path("docs/cost/keras") / f"{backend}.md", _environment(backend) | ONE_THREAD)


@nox.session(python=PYTHON)
def bench_jax(session: nox.Session) -> None:
    """Freezing and summarising 7 and 405 billion abstract parameters and 100,000 arrays, beside clu and linen's tabulate."""
    _install(session, ".", group="bench-jax")
    session.run("python", "benchmarks/jax_scale.py", env=ENVIRONMENT)


@nox.session(python=PYTHON)
@nox.parametrize("backend", [name for name in BACKENDS if name not in {"nnx", "equinox"}], ids=[name for name in BACKENDS if name not in {"nnx", "equinox"}])
def bench_verify(session: nox.Session, backend: str) -> None:
    """What it costs to prove that nothing moved, beside a training step and a copy."""
    _install(session, ".", group=f"test-{backend}")
    _page(session, "benchmarks/verify.py", Path("docs/cost/verify") / f"{backend}.md", _environment(backend) | ONE_THREAD)


@nox.session(python=PYTHON)
@nox.parametrize("backend", BACKENDS, ids=BACKENDS)
def traps(session: nox.Session, backend: str) -> None:
    """How far "frozen" weights move when frozen by the framework's own usual means, and with unifreeze."""
    _install(session, ".", group=f"test-{backend}")
    found = session.run("python", f"benchmarks/traps/{backend.partition('-')[0]}.py", silent=True, env=_environment(backend))
    page = Path("docs/traps") / f"{backend}.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(str(found).strip() + "\n")
    print(page.read_text())
