#!/usr/bin/env python3
"""For people who come from a bridge to a weight updater beside each vLLM: its class, over strew.

    bridge = create_bridge_from_training_config(config)
    for batch in data:
        ...
        optimizer.step()
        bridge.broadcast_weights(model)

The methods, configuration and environment are those that such trainers use; what they do is one
strew.Trainer. No process group is joined, no file of names is exchanged, no GPU is numbered: the
names travel once, when the tensors are declared, and a mismatch is an error before any byte lands.

Each node runs a broker. `python3 examples/bridge.py` prints this node's command from
NUM_INFERENCE_NODES and SLURM_JOB_NODELIST, as in a batch script:

    srun bash -c 'exec $(python3 examples/bridge.py --key-file key) -- ./train_or_serve.sh'
"""

import argparse
import dataclasses
import os
import re
import socket
import time

import strew

PORT = 26756  # where the brokers join
PASSED_ON = ("socket", "join-timeout", "key-file", "backend", "device", "slot", "slots", "shadow")


def hostnames(nodelist):
    """The hosts of a Slurm node list: "gpu[01-03,7],login" is gpu01, gpu02, gpu03, gpu7, login."""
    hosts = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        bracket = re.search(r"\[([^\]]*)\]", part)
        if not bracket:
            hosts.append(part)
            continue
        for span in bracket[1].split(","):
            first, _, last = span.partition("-")
            for number in range(int(first), int(last or first) + 1):
                name = f"{part[:bracket.start()]}{number:0{len(first)}d}{part[bracket.end():]}"
                hosts += hostnames(name)
    return hosts


def get_inference_urls(num_inference_nodes=0):
    """(where brokers join, None, None, hosts of the inference nodes): the job's last nodes; with
    0 of them all is on this node, and nobody joins. Only the first port is in use any more."""
    if num_inference_nodes < 0:
        raise ValueError("NUM_INFERENCE_NODES is negative; updates by HTTP are not for strew")
    if num_inference_nodes == 0:
        return None, None, None, ["localhost"]
    hosts = hostnames(os.environ.get("SLURM_JOB_NODELIST", ""))
    if len(hosts) <= num_inference_nodes:
        raise ValueError(f"NUM_INFERENCE_NODES is {num_inference_nodes}, and SLURM_JOB_NODELIST "
                         f"has {len(hosts)} hosts, of which the first is the trainer's")
    return f"{hosts[0]}:{PORT}", None, None, hosts[-num_inference_nodes:]


def broker_command(num_inference_nodes, host, options=()):
    """What this host runs before "-- COMMAND"."""
    address = get_inference_urls(num_inference_nodes)[0]
    if address is None:
        return ["strew", "run", *options]
    role = "--listen" if host.split(".")[0] == address.split(":")[0].split(".")[0] else "--join"
    return ["strew", "run", role, address, *options]


@dataclasses.dataclass
class BridgeConfig:
    """trainer_rank of world_size: all of them call broadcast_weights(). start_version: the last
    version that was published, for a trainer that was started again; versions only go up."""

    trainer_rank: int = 0
    world_size: int = 1
    init_method: str = "env://"  # not in use: the trainer joins nothing
    num_inference_nodes: int = 0
    model_name: str = ""
    device: str = "cuda"  # not in use: tensors know where they are
    timeout_seconds: float = 300.0
    log_dir: "str | None" = None  # not in use: no file is exchanged
    start_version: int = 0

    @classmethod
    def from_training_config(cls, config):
        nodes = getattr(config, "num_inference_nodes", None)
        if nodes is None:
            nodes = int(os.environ.get("NUM_INFERENCE_NODES", 0))
        return cls(trainer_rank=getattr(config, "trainer_rank", 0),
                   world_size=getattr(config, "world_size", 1), num_inference_nodes=nodes,
                   model_name=config.model_name, start_version=getattr(config, "start_version", 0),
                   device=getattr(config, "device", "cuda"), log_dir=os.environ.get("LOGDIR"))


class VLLMWeightBridge:
    """Between a trainer and the engines: initialize(), then broadcast_weights() after each step."""

    def __init__(self, config):
        self.config = config
        self.param_name_list = None  # None: all of the model's
        self._trainer = None
        self._declared = None
        self._update_count = config.start_version

    def initialize(self):
        """Connects to this node's broker, whose socket `strew run` has put into the environment."""
        if self._trainer is None:
            get_inference_urls(self.config.num_inference_nodes)  # refuses a bad environment early
            self._trainer = strew.Trainer(self.config.model_name, rank=self.config.trainer_rank,
                                          size=self.config.world_size)

    def set_param_list_from_model(self, model):
        """Publish these parameters and no others (no buffers). Order means nothing."""
        self.param_name_list = sorted(name for name, _ in model.named_parameters())

    def broadcast_weights(self, model):
        """Publishes all weights as the next version; returns the report. Raises where no engine
        has them: what was printed and forgotten before is an error. The first waits for an engine.
        """
        first = self._declare(model)
        end = time.monotonic() + self.config.timeout_seconds
        while True:
            try:
                report = self._publish()
                break
            except strew.NotCommitted as failure:
                # Nobody is there yet: the version may be published again.
                if not first or failure.report.groups or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        if self.config.trainer_rank == 0:
            print(f"[Bridge] update #{report.version}: {report.outcome}, {report.tensors} tensors, "
                  f"{report.bytes} bytes ({report.total_s:.3f}s)", flush=True)
        return report

    def broadcast_single_param(self, model, param_name):
        """Publishes a version in which only this parameter is new; a whole one comes first."""
        self._declare(model)
        return self._publish(only=[param_name])

    def notify_update(self):
        """Nothing: broadcast_weights() has returned when every engine has the version."""

    def send_heartbeat(self):
        """Nothing: brokers watch each other."""

    def cleanup(self):
        """Waits for lent memory and disconnects. Engines keep what they have."""
        if self._trainer is not None:
            self._trainer.close()
        self._trainer = self._declared = None

    def _declare(self, model):
        """At the first call: declares the parameters, which must keep their memory from then on."""
        if self._trainer is None:
            raise RuntimeError("the bridge is not initialized: call initialize() first")
        if self._declared is None:
            named = dict(model.named_parameters())
            names = named if self.param_name_list is None else self.param_name_list
            self._trainer.declare({name: named[name] for name in names})
            self._declared = model
            return True
        if self._declared is not model:
            raise ValueError("another model than at the first update: cleanup() and initialize()")
        return False

    def _publish(self, **options):
        version = self._update_count + 1
        try:
            report = self._trainer.publish(version, timeout=self.config.timeout_seconds, **options)
        except strew.NotCommitted as failure:
            if failure.report.outcome == "lost":  # it was decided: the number is spent
                self._update_count = version
            raise
        except (strew.Timeout, KeyboardInterrupt):
            # The next update is of other weights. Several ranks count alike: there the same
            # number hears how this one has ended.
            if self.config.world_size == 1:
                self._update_count = version
            raise
        self._update_count = version
        if int(os.environ.get("WEIGHT_UPDATER_DEBUG", 0)):
            for group in report.groups:
                print(f"[Bridge] node {group.node} replica {group.replica}: {group.outcome} "
                      f"{group.text}", flush=True)
        return report


def create_bridge_from_training_config(config):
    """A bridge that is ready. config: an object with model_name, and what BridgeConfig has."""
    bridge = VLLMWeightBridge(BridgeConfig.from_training_config(config))
    bridge.initialize()
    return bridge


def export_param_mappings(model, model_name, **_):
    """Nothing: engines tell their layouts themselves (strew.record_layout)."""


def main():
    parser = argparse.ArgumentParser(description="Prints this node's broker command.",
                                     epilog="The options are those of strewd --help.",
                                     allow_abbrev=False)
    for name in PASSED_ON:
        parser.add_argument(f"--{name}")
    parser.add_argument("--verbose", action="store_true")
    given = vars(parser.parse_args())
    options = [word for name in PASSED_ON if (value := given[name.replace("-", "_")]) is not None
               for word in (f"--{name}", value)]
    options += ["--verbose"] if given["verbose"] else []
    nodes = int(os.environ.get("NUM_INFERENCE_NODES", 0))
    print(*broker_command(nodes, os.environ.get("SLURMD_NODENAME", socket.gethostname()), options))


if __name__ == "__main__":
    main()
