"""The engine that vLLM's factory makes in each worker, for backend="strew"."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from ._core import Core, Init, answer_together, follow_sleep
from ._interface import found, refuse


@dataclasses.dataclass
class StrewInitInfo(Init, WeightTransferInitInfo):
    """See Init."""


@dataclasses.dataclass
class StrewUpdateInfo(WeightTransferUpdateInfo):
    """version: the trainer's number, which is being published. timeout: seconds."""

    version: int
    timeout: float = 60.0


def _core_of(worker: Any) -> Core | None:
    engine = getattr(worker, "weight_transfer_engine", None)
    return engine.core if isinstance(engine, StrewEngine) else None


class StrewEngine(WeightTransferEngine):  # type: ignore[misc]
    """Lets an update in while vLLM calls receive_weights(), between two steps of the worker."""

    init_info_cls = StrewInitInfo
    update_info_cls = StrewUpdateInfo
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: torch.device,
                 model: torch.nn.Module) -> None:
        have = found()
        if not have.engine:
            raise refuse(have)
        super().__init__(config, vllm_config, device, model)
        self.core = Core(vllm_config, device, model)
        worker_class = vllm_config.parallel_config.worker_cls
        if isinstance(worker_class, str) and worker_class != "auto":
            try:
                from vllm.utils.import_utils import resolve_obj_by_qualname
            except ImportError:
                from vllm.utils import resolve_obj_by_qualname
            worker_class = resolve_obj_by_qualname(worker_class)
        if isinstance(worker_class, type):
            follow_sleep(worker_class, _core_of)
            answer_together(worker_class, _core_of, (
                "init_weight_transfer_engine", "start_weight_update", "update_weights",
                "finish_weight_update"))

    def init_transfer_engine(self, init_info: StrewInitInfo) -> None:
        """Registers the parameters with this node's broker."""
        fields = {f.name: getattr(init_info, f.name) for f in dataclasses.fields(Init)}
        self.core.init(Init(**fields))

    def start_weight_update(self) -> None:
        """Looks whether the broker is there, before the trainer publishes."""
        self.core.need().prepare()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """One call for an update."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: StrewUpdateInfo) -> None:
        """The held gate: returns when the version is in; raises if the old weights stay."""
        self.core.need().receive(update_info.version, update_info.timeout)

    def finish_weight_update(self) -> None:
        """Nothing is left to do; raises if no step may run."""
        self.core.need().finish()

    def shutdown(self) -> None:
        """Withdraws the parameters."""
        self.core.close()

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """Of vLLM 0.25 and 0.26: weights do not go through iterators here."""
        raise NotImplementedError("strew: use strew.vllm.StrewTrainerEngine.trainer_init() and "
                                  "its send_weights()")
