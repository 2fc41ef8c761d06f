"""What the trainers of engines share: calls to several engines at once, and publishing itself."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from ._errors import BrokerLost, Busy, Error, NotCommitted, Timeout
from ._trainer import Publishing, Report, Trainer

logger = logging.getLogger("strew.control")

T = TypeVar("T")


def call_each(engines: Mapping[int, T], call: Callable[[T], object],
              failures: dict[int, Exception]) -> None:
    """Calls all engines at once, as an update waits for the slowest; returns when all have ended.

    Those that fail are put into `failures`, by number: one bad engine stops no other. Ctrl-C (and
    what else is no Exception) is raised, but not before all calls have ended and been noted.
    """
    ended: dict[int, BaseException | None] = {}

    def run(index: int) -> None:
        try:
            call(engines[index])
            ended[index] = None
        except BaseException as failure:  # pylint: disable=broad-except
            ended[index] = failure

    try:
        if len(engines) > 1:
            with concurrent.futures.ThreadPoolExecutor(len(engines)) as pool:
                list(pool.map(run, engines))
        else:  # perhaps in this process, whose threads have devices of their own
            for index in engines:
                run(index)
    finally:
        for index, failure in ended.items():
            if isinstance(failure, Exception):
                logger.warning("strew: engine %d: %s", index, failure)
                failures[index] = failure
    for failure in ended.values():
        if failure is not None and not isinstance(failure, Exception):
            raise failure


class Publisher:
    """Publishes versions of a trainer one after another, whatever became of the one before.

    Args:
        trainer: declared and sealed, or about to be.
        timeout: seconds, of an update.
    """

    def __init__(self, trainer: Trainer, timeout: float) -> None:
        self._trainer, self._timeout = trainer, timeout
        self._handle: Publishing | None = None  # published, and its report was not taken
        self._lost = False

    def publish(self, version: int) -> None:
        """Begins an update; report() ends it. Errors are those of Trainer.publish_async().

        Takes the report of an earlier one first, if an interrupted call has left that behind, and
        finds the next broker if the one before is gone.
        """
        self.drop()
        # Also of the same version: its report is not that of the weights as they are now.
        self._trainer.take_left()
        if self._lost:
            self._trainer.reconnect(self._timeout)
            self._lost = False
        try:
            self._handle = self._trainer.publish_async(version, timeout=self._timeout)
        except BrokerLost:
            self._lost = True
            self._trainer.reconnect(self._timeout)
            self._lost = False
            self._handle = self._trainer.publish_async(version, timeout=self._timeout)

    def report(self) -> Report:
        """Waits for the end of what was published. Raises NotCommitted if no group has it.

        After Timeout and Ctrl-C it may be called again.
        """
        assert self._handle is not None
        try:
            report = self._handle.report(self._timeout + 30.0)
        except (Busy, Timeout):
            raise
        except Error as failure:
            self._handle, self._lost = None, self._lost or isinstance(failure, BrokerLost)
            raise
        self._handle = None
        if not any(group.outcome == "committed" for group in report.groups):
            raise NotCommitted(report, report.text or "no engine is registered: see their logs")
        return report

    def drop(self, failure: BaseException | None = None) -> bool:
        """Takes the report of what was published, if nobody has: nothing stays behind.

        failure: what the caller is about to raise; a report that was late is not awaited again.
        True if that version cannot be published again, as far as is known: somebody has it.
        """
        if isinstance(failure, NotCommitted):
            return getattr(failure.report, "outcome", "") != "aborted"
        if self._handle is None or isinstance(failure, Timeout):
            return False
        try:
            self.report()
        except NotCommitted as reason:
            return self.drop(reason)
        except Error:
            return False
        return True
