"""The wheel, as users get it: what is in it, and that it works where the
checkout cannot be seen."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import piggyback

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

LIBRARY = """
import sys
import torch
import piggyback, regularizers
from pathlib import Path

place = Path(sys.argv[1]).resolve()
for package in (piggyback, regularizers):
    assert place in Path(package.__file__).resolve().parents, package.__file__
heavy = {"skimage", "sklearn", "scipy", "matplotlib", "PIL", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
try:
    import experiments
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the checkout is importable")

torch.manual_seed(0)
noisy = torch.rand(1, 1, 16, 16)
regularizer = regularizers.LinearRegularizer(
    regularizers.LinearConfig(filters=4, size=3)
)
layer = piggyback.Reconstruction(regularizer, tolerance=1e-4)
layer(piggyback.Denoising(noisy)).square().sum().backward()
assert 0 < layer.report.gradient_error < float("inf")
assert float(regularizer.coefficients.grad.abs().max()) > 0
print(piggyback.__version__)
"""

WITHOUT_THE_APP = """
import sys
sys.modules["rich"] = None
from piggyback.app.main import main
main(["restore", "--help"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--disable-pip-version-check"),
            *("--wheel-dir", str(folder), str(ROOT)),
        ],
        folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that it was installed into."""
    folder = tmp_path_factory.mktemp("installed")
    _run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-index", "--disable-pip-version-check"),
            *("--target", str(folder), str(wheel)),
        ],
        folder,
    )
    return folder


def test_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "piggyback",
        "regularizers",
    }
    assert {"piggyback/py.typed", "regularizers/py.typed"} <= names
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("piggyback", "regularizers")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules <= names
    weights = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "regularizers" / "pretrained").glob("*.safetensors")
    }
    assert weights <= names


def test_needs_torch_and_safetensors_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (
            name for name in archive.namelist() if name.endswith("/METADATA")
        )
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == piggyback.__version__
    core = [
        line
        for line in metadata.get_all("Requires-Dist", [])
        if ";" not in line
    ]
    assert sorted(core) == ["safetensors", "torch>=2.4"]


def test_the_library_works_from_another_folder(
    installed: Path, tmp_path: Path
) -> None:
    done = _isolated(["-c", LIBRARY, str(installed)], installed, tmp_path)
    assert done.stdout.split() == [piggyback.__version__]


@pytest.mark.parametrize("command", ["", "train", "evaluate", "restore"])
def test_every_command_explains_itself(
    command: str, installed: Path, tmp_path: Path
) -> None:
    words = ["-m", "piggyback.app.main", *command.split(), "--help"]
    told = _isolated(words, installed, tmp_path).stdout
    assert f"usage: piggyback {command}".strip() in told
    assert "experiments" not in told


def test_without_the_extra_one_line_says_what_to_install(
    installed: Path, tmp_path: Path
) -> None:
    done = _isolated(["-c", WITHOUT_THE_APP], installed, tmp_path, expected=2)
    (line,) = done.stderr.splitlines()
    assert line == (
        "error: piggyback restore needs the package rich, which is not "
        "installed: pip install 'piggyback-bilevel[app]'"
    )


def _isolated(
    words: list[str], installed: Path, folder: Path, expected: int = 0
) -> subprocess.CompletedProcess[str]:
    """Python with the installed wheel and the dependencies.

    ``-S`` leaves out the ``.pth`` files, by which an editable install makes
    the checkout importable.
    """
    places = [str(installed), sysconfig.get_path("purelib")]
    places.append(sysconfig.get_path("platlib"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return _run([sys.executable, "-S", *words], folder, environment, expected)


def _run(
    words: list[str],
    folder: Path,
    environment: dict[str, str] | None = None,
    expected: int = 0,
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done
