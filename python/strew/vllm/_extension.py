"""For vLLMs without an interface that strew knows: worker_extension_cls."""

from __future__ import annotations

from typing import Any


def _core_of(worker: Any) -> Any:
    return getattr(worker, "strew_core", None)


class WorkerExtension:
    """LLM(..., worker_extension_cls="strew.vllm.WorkerExtension"): vLLM adds it to its worker.

    Its methods are called by LLM.collective_rpc(); strew.vllm.LLMClient(llm, extension=True) does.
    """

    def strew_init(self, init_info: dict[str, Any]) -> str:
        """Registers the parameters with this node's broker; see _core.Init."""
        from ._core import Core, Init, answer_together, follow_sleep
        worker: Any = self
        if _core_of(worker) is None:
            model = worker.model_runner
            model = model.get_model() if hasattr(model, "get_model") else model.model
            worker.strew_core = Core(worker.vllm_config, worker.device, model)
            follow_sleep(type(worker), _core_of)
            answer_together(type(worker), _core_of, ("strew_start", "strew_update",
                                                     "strew_finish"))
        worker.strew_core.init(Init(**init_info))
        return self.strew_state()

    def strew_start(self) -> None:
        """Before an update is published."""
        self._strew_need().prepare()

    def strew_update(self, version: int, timeout: float = 60.0) -> None:
        """The held gate: returns when the version is in; raises if the old weights stay."""
        self._strew_need().receive(version, timeout)

    def strew_finish(self) -> None:
        """Raises if no step may run."""
        self._strew_need().finish()

    def strew_close(self) -> None:
        """Withdraws the parameters."""
        core = _core_of(self)
        if core is not None:
            core.close()

    def strew_state(self) -> str:
        """ "CURRENT 7": the group's state, and the version that the parameters hold."""
        receiver = self._strew_need()
        return f"{receiver.state} {receiver.version}"

    def _strew_need(self) -> Any:
        core = _core_of(self)
        if core is None:
            raise RuntimeError("strew: strew_init comes first")
        return core.need()
