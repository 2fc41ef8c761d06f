"""How a trainer reaches vLLM's control plane: the four calls of an update, and those around it."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import urllib.request
from typing import Any

from .._errors import Error

logger = logging.getLogger("strew.vllm")


class LLMClient:
    """vLLM's `LLM` in this process. It runs no step while it is called: no pause is needed.

    extension: through WorkerExtension, for a vLLM without weight transfer that strew knows.
    """

    def __init__(self, llm: Any, extension: bool = False) -> None:
        self._llm, self._extension = llm, extension

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each worker registers."""
        if self._extension:
            self._llm.collective_rpc("strew_init", args=(init_info,))
        else:
            self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        """Before an update is published."""
        if self._extension:
            self._llm.collective_rpc("strew_start")
        else:
            self._llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Returns when each worker has the version."""
        if self._extension:
            self._llm.collective_rpc("strew_update", kwargs=update_info)
        else:
            self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Ends it, and tells vLLM the version where it has a place for it."""
        if self._extension:
            self._llm.collective_rpc("strew_finish")
        elif "weight_version" in inspect.signature(self._llm.finish_weight_update).parameters:
            self._llm.finish_weight_update(weight_version)
        else:
            self._llm.finish_weight_update()

    def pause_generation(self, mode: str) -> None:
        """Nothing."""

    def resume_generation(self) -> None:
        """Nothing."""

    def reset_prefix_cache(self) -> bool:
        """vLLM's own."""
        return self._llm.reset_prefix_cache() is not False


class Control:
    """A client of vLLM's, or one with its four methods, and the calls that it has not.

    Pausing, resuming and resetting the prefix cache are not in vLLM's VLLMWeightSyncClient: they
    are asked of its HTTP server or Ray actors beside it, or of methods pause_generation(mode=),
    resume_generation() and reset_prefix_cache() that a client may have. A server or actor has the
    client's `timeout` (seconds) for an answer, or 300: TimeoutError, or Ray's of that name.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._url = getattr(client, "base_url", None)
        self._handles = getattr(client, "handles", None)
        self._timeout = getattr(client, "timeout", 300)
        if not (self._url or self._handles or hasattr(client, "reset_prefix_cache")):
            logger.warning("strew: client %s has no pause_generation(), resume_generation() and "
                           "reset_prefix_cache(): call vLLM's around send_weights() yourself",
                           type(client).__name__)

    def pause(self, mode: str) -> None:
        """No step runs from its return on."""
        self._call("pause_generation", "pause", {"mode": mode})

    def resume(self) -> None:
        """They run again."""
        self._call("resume_generation", "resume", {})

    def reset_prefix_cache(self) -> None:
        """What was computed with the old weights is not used any more, for nobody's request."""
        if hasattr(self.client, "reset_prefix_cache"):
            answers = [self.client.reset_prefix_cache()]
        else:
            answers = self._call("reset_prefix_cache", "reset_prefix_cache",
                                 {"reset_running_requests": True})
        if any(answer is False for answer in answers):
            raise Error(errno.EBUSY, "vLLM did not reset its prefix cache: requests hold blocks "
                        "of it; it is left paused")

    def finish(self, version: int) -> None:
        """Ends the update, with the version where vLLM takes one."""
        finish = self.client.finish_weight_update
        if inspect.signature(finish).parameters:
            finish(str(version))
        else:
            finish()

    def _call(self, method: str, path: str, options: dict[str, Any]) -> list[Any]:
        if hasattr(self.client, method):
            return [getattr(self.client, method)(**options)]
        if self._handles:
            import ray
            return list(ray.get([getattr(handle, method).remote(**options)
                                 for handle in self._handles], timeout=self._timeout))
        if self._url:
            query = "&".join(f"{name}={str(value).lower()}" for name, value in options.items())
            address = f"{self._url}/{path}" + (f"?{query}" if query else "")
            request = urllib.request.Request(address, method="POST")
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                said = answer.read()
            return [json.loads(said).get("success") if said else None]
        return []
