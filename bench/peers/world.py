"""A world: all processes of a comparison, their memory shared, ready to run mechanisms.

A sample: new random data in the trainer, poison in the workers, the mechanism, and every byte of
every worker compared. Its time is from the trainer's start to the last end of any process, each of
which waits for its GPU first; the clock is the system's monotonic one. Who only receives is
already waiting when the trainer starts.
"""

import random
import socket

import children

LOW_BYTES = 12 << 30  # checkpoint-engine sizes its buckets by what is free
START_S = 240

# Asked for by these names; the table's names are beside them.
TITLES = {"index": "index-then-tensor", "tensor": "tensor", "packed": "packed",
          "checkpoint-engine": "checkpoint-engine"}


class WorldError(Exception):
    """It could not be started: no mechanism's fault."""


class MechanismError(Exception):
    def __init__(self, mechanism, reason):
        super().__init__(reason)
        self.mechanism = mechanism


def two_ports():
    """A free port whose successor is free too: checkpoint-engine takes the second."""
    while True:
        port = random.randrange(20000, 32000)
        try:
            for one in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
            return port
        except OSError:
            continue


class World:
    def __init__(self, place, settings):
        self.place = place
        self.deadline = settings["deadline"]
        self.base = place.world
        self.servers = [p.name for p in place.of("server")]
        self.workers = [p.name for p in place.of("worker")]
        self.machine = {}
        envs = {p.name: children.environment(p) for p in place.processes}
        try:
            self.children = children.Children(place.processes, settings["directory"], envs)
        except OSError as error:
            raise WorldError(f"a process could not be started: {error}") from error
        try:
            self._start(settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self.children.close()

    def _start(self, settings):
        exported = {}
        try:
            for name in self.base:
                self.children.tell([name], do="start", process=name, settings=settings)
            for name, said in self.children.answers(self.base, START_S, "start").items():
                exported[name] = said["exported"]
                self.machine = said["machine"] if name == "trainer" else self.machine
            self._map(self.base, exported)
            self.children.ask(self.base, START_S, do="join", port=0)
        except children.ChildError as error:
            raise WorldError(str(error)) from error
        try:
            for name in self.servers:
                self.children.tell([name], do="start", process=name, settings=settings)
            self.children.answers(self.servers, START_S, "start")
            self._map(self.servers, exported)
            self.children.ask(self.servers, START_S, do="join", port=two_ports())
        except children.ChildError as error:
            raise MechanismError("checkpoint-engine", str(error)) from error

    def _map(self, names, exported):
        for name in names:
            wanted = self._mapped_by(self.place.named(name))
            self.children.tell([name], do="map", exported={w: exported[w] for w in wanted})
        self.children.answers(names, START_S, "map")

    def _mapped_by(self, process):
        """Whose memory a process maps; nobody maps their own."""
        if process.role == "receiver":
            return self.place.fed_by(process)
        if process.role == "server":
            return ["trainer"] if process.index == 0 else []
        if process.role == "trainer":
            return []
        loader, there = self.place.loader(process.gpu)
        siblings = [n for n in there if n != process.name] if (
            self.servers and loader == process.name) else []
        return siblings + (["trainer"] if process.name in self.place.colocated else [])

    def sample(self, mechanism, **options):
        """Runs it once; returns {"seconds": …, "verified_bytes": …}, and what it adds."""
        seed = random.SystemRandom().randrange(1, 2 ** 40)
        raw = mechanism == "raw"
        try:
            if not raw:
                self.children.ask(["trainer"], self.deadline, do="fill", seed=seed)
                self.children.ask(self.workers, self.deadline, do="poison")
            if mechanism == "checkpoint-engine":
                result = self._run_checkpoint_engine()
            else:
                result = self._run(mechanism, options)
            if not raw:
                result["verified_bytes"] = self._verify(mechanism, seed)
        except children.ChildError as error:
            raise MechanismError(mechanism, str(error)) from error
        return result

    def _verify(self, mechanism, seed):
        found = self.children.ask(self.workers, self.deadline, do="verify", seed=seed)
        for name, said in sorted(found.items()):
            if said["wrong"]:
                raise MechanismError(mechanism, f"wrong bytes in {name}: {said['wrong']} elements, "
                                                f"first {said['first']}")
            assert said["looked"] > 0
        return sum(said["looked"] for said in found.values())

    def _run(self, mechanism, options):
        group = "receivers" if mechanism in ("raw", "index") else "workers"
        waiting = [name for name in self.place.groups[group] if name != "trainer"]
        starting = ["trainer"] + (list(self.place.colocated) if group == "workers" else [])
        if len(waiting) == 0:
            raise MechanismError(mechanism, "nobody receives by NCCL here")
        self.children.tell(waiting, do="run", mechanism=mechanism, armed=True, **options)
        self.children.answers(waiting, self.deadline, f"{mechanism}, before the trainer's start")
        self.children.tell(starting, do="run", mechanism=mechanism, **options)
        said = self.children.answers(waiting + starting, self.deadline, mechanism)
        begin = min(said[name]["begin"] for name in starting)
        return {"seconds": (max(one["end"] for one in said.values()) - begin) / 1e9}

    def _run_checkpoint_engine(self):
        """The servers ask for their engines, each by a message with the addresses of all."""
        free = self.children.ask([self.place.loader(p.gpu)[0] for p in self.place.of("server")],
                                 self.deadline, do="machine")
        if min(said.get("free_bytes", LOW_BYTES) for said in free.values()) < LOW_BYTES:
            self.children.ask(self.base, self.deadline, do="release")
        names = {p.name: self.place.loader(p.gpu)[0] for p in self.place.of("server")}
        waiting, said = set(names) | set(names.values()), {}
        self.children.tell(self.servers, do="run", mechanism="checkpoint-engine")
        for name, message in self.children.hear(waiting, self.deadline, "checkpoint-engine"):
            if "paths" in message:
                self.children.tell([names[name]], do="run", mechanism="checkpoint-engine",
                                   paths=message["paths"])
                continue
            said[name] = message
            waiting.discard(name)
            if not waiting:
                break
        begin = min(said[name]["begin"] for name in names)
        mid = max(said[name]["mid"] for name in names)
        end = max(one["end"] for one in said.values())
        return {"seconds": (end - begin) / 1e9, "update_seconds": (end - mid) / 1e9}
