"""Which processes there are, on which GPU each works, and who speaks with whom over NCCL.

One trainer, on GPU 0; a worker for each tensor-parallel rank; a receiver for each GPU that gets
bytes by NCCL, which is the replaced daemon and the other end of the raw broadcast; and, for
checkpoint-engine, one of its servers a GPU. NCCL refuses two ranks of one host on one GPU, so:

- more GPUs than workers: worker r on GPU 1 + r, every worker a rank beside the trainer.
- fewer: worker r on GPU r modulo their number. Workers on the trainer's GPU are no NCCL ranks:
  they map the trainer's memory by CUDA IPC and copy out of it, as colocated engines do.
- one GPU, or two workers on one that is not the trainer's: NCCL is told by NCCL_HOSTID that each
  process is a host of its own. It then goes by sockets, and the table says so.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Process:
    name: str
    role: str          # trainer, worker, receiver, server
    gpu: int
    index: int         # a worker's tensor-parallel rank; a receiver's or server's number
    host_id: str = ""  # NCCL_HOSTID; empty: what the environment says


@dataclasses.dataclass(frozen=True)
class Place:
    gpus: int
    processes: tuple
    colocated: tuple   # workers that map the trainer's memory
    note: str          # how this machine was made do, for people

    def of(self, *roles):
        return [p for p in self.processes if p.role in roles]

    def named(self, name):
        return next(p for p in self.processes if p.name == name)

    @property
    def world(self):
        """Names of the processes that join torch.distributed, in the order of their ranks."""
        return [p.name for p in self.of("trainer", "worker", "receiver")]

    @property
    def groups(self):
        """Process groups: trainer and workers, trainer and receivers."""
        workers = [p.name for p in self.of("worker") if p.name not in self.colocated]
        return {"workers": ["trainer"] + workers,
                "receivers": ["trainer"] + [p.name for p in self.of("receiver")]}

    def fed_by(self, receiver):
        """Workers into whose memory a receiver copies: those of its GPU, and the first receiver
        also those of GPUs that have none."""
        receivers = self.of("receiver")
        own = {p.gpu for p in receivers}
        return [p.name for p in self.of("worker") if p.gpu == receiver.gpu or
                (receiver == receivers[0] and p.gpu not in own)]

    def loader(self, gpu):
        """Who answers checkpoint-engine's server of that GPU, and the workers it loads for: its
        protocol has one engine process a GPU."""
        there = [p.name for p in self.of("worker") if p.gpu == gpu]
        return (there[0] if there else "trainer"), there


def place(gpus, tp, servers=False):
    """Places tp workers on that many GPUs (at least 1)."""
    used = min(gpus, tp + 1)
    spread = used > tp
    at = [1 + r if spread else r % used for r in range(tp)]
    colocated = tuple(f"worker{r}" for r in range(tp) if used > 1 and at[r] == 0)
    remote = [gpu for gpu in at if used == 1 or gpu != 0]
    crowded = len(set(remote)) < len(remote)
    alone = used == 1
    processes = [Process("trainer", "trainer", 0, 0, "strew-peers-trainer" if alone else "")]
    for r in range(tp):
        host = f"strew-peers-worker{r}" if alone or crowded else ""
        processes.append(Process(f"worker{r}", "worker", at[r], r, host))
    for i, gpu in enumerate(sorted(set(remote))):
        host = f"strew-peers-receiver{i}" if alone else ""
        processes.append(Process(f"receiver{i}", "receiver", gpu, i, host))
    if servers:
        processes += [Process(f"server{g}", "server", g, g) for g in range(used)]
    return Place(used, tuple(processes), colocated, _note(alone, crowded, colocated))


def _note(alone, crowded, colocated):
    if alone:
        return "one GPU: each NCCL rank is a host of its own (NCCL_HOSTID), so NCCL goes by sockets"
    parts = []
    if colocated:
        parts.append(f"{', '.join(colocated)} on the trainer's GPU: by CUDA IPC, not a rank")
    if crowded:
        parts.append("several workers on one GPU: each a host of its own (NCCL_HOSTID), so the "
                     "mechanisms with workers as ranks go by sockets; index and raw do not")
    return "; ".join(parts) or "every worker on a GPU of its own"
