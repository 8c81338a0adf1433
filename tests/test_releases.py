"""Loading, saving, initialising and parity on the oldest supported release of transformers and two in between.

Each release is installed into a directory of its own that is put before the environment's, without a second torch.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["tests/modeling/test_parity.py", "tests/modeling/test_initialization.py", "tests/test_configuration.py"]


@pytest.mark.slow
@pytest.mark.parametrize("release", ["5.4.0", "5.10.2", "5.17.0"])
def test_release(release: str, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path), f"transformers=={release}"]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    asked = subprocess.run(
        [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert asked.stdout.strip() == release
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ROOMS]
    done = subprocess.run(tests, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
