"""What a trainer's options do between two brokers."""

import json
import subprocess
import time

import numpy
import pytest

pytest.importorskip("torch")

from conftest import Broker
from test_package import host_copy, whole

import strew
from loaders import free_port


def ask(broker, *words):
    """The JSON objects, one a line or one in all, that strew prints."""
    run = subprocess.run([strew.program("strew"), *words, "--json", "--socket", broker.socket],
                         check=True, capture_output=True, text=True)
    text = run.stdout
    return [json.loads(text)] if text.startswith("{\n") else list(map(json.loads,
                                                                      text.splitlines()))


@pytest.fixture
def brokers(tmp_path):
    """The trainer's, which leads, and the worker's."""
    port = free_port()
    for name in ("lead", "other"):
        (tmp_path / name).mkdir()
    lead = Broker(tmp_path / "lead", "--listen", f"127.0.0.1:{port}")
    other = Broker(tmp_path / "other", "--join", f"127.0.0.1:{port}")
    end = time.monotonic() + 20
    while len(ask(lead, "status")[0]["brokers"]) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    yield lead, other
    other.stop()
    lead.stop()


def hashed(broker, version):
    """Has the lead compared both ends' sums of what was sent last?"""
    rows = [row for row in ask(broker, "explain", "w") if row["kind"] == "slot"]
    assert rows and all(row["version"] == version for row in rows)
    return all(row["sum"] for row in rows)


@pytest.mark.parametrize("way", ["whole", "async", "subset", "parts"])
def test_hashes_are_compared_where_they_are_asked_for(brokers, way):
    lead, other = brokers
    source = host_copy(numpy.random.default_rng().standard_normal((300, 7)).astype("float32"))
    target = strew.host_empty((300, 7), "float32")
    target[...] = -1
    with strew.Trainer("m", rank=0, size=1, socket=lead.socket) as trainer, \
            strew.Agent("m", gate="live", apply="direct", socket=other.socket) as agent:
        agent.piece(agent.declare("w", target), whole("w", target))
        agent.register()
        if way == "parts":
            trainer.declare_parts({"w": source})
        else:
            trainer.declare({"w": source})
        # Where all apply directly, nothing is hashed that nobody has asked for.
        for version, wanted in ((1, False), (2, True), (3, False)):
            source[...] += 1
            more = {"only": ["w"]} if way == "subset" else \
                {"source": [("w", source)]} if way == "parts" else {}
            report = trainer.publish_async(version, hash=wanted).report() if way == "async" else \
                trainer.publish(version, hash=wanted, **more)
            assert report.committed and report.wire_bytes
            assert (target == source).all()
            assert hashed(lead, version) == wanted
