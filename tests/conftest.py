"""What several tests need: the reference data, a small simulated particle set, and checked tensor shapes."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

PHYSICS = Path(__file__).parents[1] / "drgn_ray" / "physics"
# All of physics but the loop that Numba compiles, which must find it as it is written.
CHECKED = [f"drgn_ray.physics.{path.stem}" for path in PHYSICS.glob("*.py") if path.stem != "gridding"]
install_import_hook([*CHECKED, "drgn_ray.models"], "beartype.beartype")

# What examples are tried changes with the code, and not with the day; long forms look for others.
settings.register_profile("repeatable", derandomize=True)
if "DRGN_RAY_FUZZ_EXAMPLES" not in os.environ:
    settings.load_profile("repeatable")

REFERENCE_DATA = Path(os.environ.get("DRGN_RAY_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of third-party particles and cryoDRGN's outputs; tests that need it skip where it is absent."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip(f"the reference data are not here ({REFERENCE_DATA}); set DRGN_RAY_DATA to their folder")
    return REFERENCE_DATA


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STAR file of 300 simulated particles of 64 px (`conversions.simulated`)."""
    from conversions.simulated import write_simulated_particles

    return write_simulated_particles(tmp_path_factory.mktemp("simulated"), 300)


@pytest.fixture(scope="session")
def store_path(simulated: Path) -> Path:
    """A store of those particles at 32 px."""
    from conversions.driver import Options, convert
    from conversions.inputs import read_particles

    path = simulated.parent / "particles.zarr"
    convert(read_particles(str(simulated)), Options(str(path), 32, "float16", None, False, 0, "drgn-ray convert"))
    return path


@pytest.fixture
def once_it_waits() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Takes what is to be done when it is next said that storage is waited for."""
    to_do: list[Callable[[], object]] = []
    handler, logger = logging.Handler(), logging.getLogger("drgn_ray.patience")
    handler.emit = lambda record: to_do.pop()() if to_do else None
    logger.addHandler(handler)
    yield to_do.append
    logger.removeHandler(handler)
    assert not to_do, "it did not wait"


@pytest.fixture(scope="session")
def cryodrgn() -> Callable[..., None]:
    """The real program; it must succeed."""
    program = os.environ.get("DRGN_RAY_CRYODRGN")
    if program is None:
        pytest.skip("cryoDRGN is not here; set DRGN_RAY_CRYODRGN to the path of its program")

    def run(*words: object) -> None:
        command = [program, *map(str, words)]
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
        assert result.returncode == 0, result.stdout + result.stderr

    return run
