"""Call frames that XLA would never make: an error or success, never a crash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parent / "fuzz_frames.py"
#: 10**6 take some minutes: JAXBIND_FUZZ_FRAMES=1000000 pytest tests/test_frames.py
FRAMES = int(os.environ.get("JAXBIND_FUZZ_FRAMES", "15000"))


@pytest.mark.parametrize("seed", [0, 1_000_000])
@pytest.mark.parametrize("where", ["host", "device"])
def test_hostile_frames(seed, where):
    command = [sys.executable, "-W", "ignore", FUZZER, f"--frames={FRAMES // 2}", f"--seed={seed}"]
    command += ["--device"] * (where == "device")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    frames, fine = (int(word) for word in done.stdout.split() if word.isdigit())
    assert frames >= FRAMES // 2
    assert frames // 10 < fine < frames * 9 // 10
