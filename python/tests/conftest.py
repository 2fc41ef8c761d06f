"""Brokers for the tests, and the library of the build folder where no wheel is installed.

With STREW_TEST_INSTALLED=1 it must be installed, and test_installed.py looks whether all of it is.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

try:
    import strew
except ImportError:
    if os.environ.get("STREW_TEST_INSTALLED") == "1":
        raise  # a wheel that is broken is no reason to test something else
    ROOT = pathlib.Path(__file__).resolve().parents[2]
    os.environ.setdefault("STREW_LIBRARY", str(ROOT / "build" / "lib" / "libstrew.so.0"))
    sys.path.insert(0, str(ROOT / "python"))
    os.environ["PYTHONPATH"] = str(ROOT / "python")  # for processes that the tests start
    import strew


def run_script(path, *options, timeout=300):
    """As a user would run it; its output is text."""
    return subprocess.run([sys.executable, path, *options], timeout=timeout, capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONFAULTHANDLER": "1"})


class Broker:
    """A strewd on the host backend."""

    def __init__(self, folder, *options):
        self.socket = folder / "s"
        self.log = folder / "log"
        read, write = os.pipe()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                [strew.program("strewd"), "--socket", str(self.socket), "--backend", "host",
                 "--slot", "256K", "--ready-fd", str(write), *options],
                pass_fds=(write,), stdout=log, stderr=log)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert pipe.read() == "READY=1\n", self.log.read_text()

    def groups(self):
        """The groups of workers, as `strew status` says."""
        said = subprocess.run([strew.program("strew"), "status", "--json", "--socket",
                               str(self.socket)], capture_output=True, check=True, timeout=20)
        return json.loads(said.stdout)["groups"]

    def stop(self):
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()


@pytest.fixture
def broker(tmp_path):
    one = Broker(tmp_path)
    yield one
    one.stop()
