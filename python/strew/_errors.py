"""The exceptions of this package: one family, each with an errno code and one sentence."""

from __future__ import annotations

import errno
import os


class Error(Exception):
    """Any failure of strew.

    Attributes:
        code: a positive errno number (``errno.EINVAL``, ...); 0 where none applies. A code that a
            broker has sent (docs/protocol.md) is the errno that stands for it here; its own number
            is not exposed.
        sentence: why, in one sentence: the broker's own words where the broker refused.
    """

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = abs(code)
        self.sentence = sentence

    def __str__(self) -> str:
        name = errno.errorcode.get(self.code)
        return f"{self.sentence} [{name}]" if name else self.sentence


class InvalidArgument(Error, ValueError):
    """Something was asked for that cannot be: a bad shape, a name twice, a call out of order."""


class NotShareable(Error, ValueError):
    """Memory or a layout of a kind that strew cannot write to or read from."""


class Timeout(Error, TimeoutError):
    """It did not happen in time. Nothing is given up: the same call may be made again."""


class Busy(Error):
    """An earlier update has not been reported yet."""


class BrokerMissing(Error, ConnectionError):
    """No broker serves the socket."""


class BrokerLost(Error, ConnectionError):
    """The connection to the broker ended; only ``reconnect()`` and ``close()`` are of use."""


class Dirty(Error):
    """The parameters are written in part: no step may use them. A whole update heals them."""


class Moved(Error):
    """A tensor that strew knows lies at another address now (``.data`` replaced, or freed)."""


class Refused(Error, ValueError):
    """A layout has parameters that cannot be filled rightly; ``names`` maps each to the reason."""

    def __init__(self, names: dict[str, str], sentence: str = "") -> None:
        shown = "; ".join(f"{name}: {why}" for name, why in list(names.items())[:8])
        more = f"; and {len(names) - 8} more" if len(names) > 8 else ""
        super().__init__(errno.ENOTSUP, sentence or f"refused: {shown}{more}")
        self.names = names


class LoaderFailed(Error):
    """The engine's own loader failed on the tensors of an update, or moved a parameter.

    The version is committed, but what goes by the loader route is not filled, or in part: no step
    may use the parameters. ``resume()`` tries again; so does the next update.
    """


class NotCommitted(Error):
    """An update that no group has committed; ``report`` tells how each group fared."""

    def __init__(self, report: object, sentence: str) -> None:
        super().__init__(errno.ECANCELED, sentence)
        self.report = report


_CLASSES: dict[int, type[Error]] = {
    errno.EINVAL: InvalidArgument,
    errno.ERANGE: InvalidArgument,
    errno.EEXIST: InvalidArgument,
    errno.E2BIG: InvalidArgument,
    errno.EISCONN: InvalidArgument,
    errno.ENOTSUP: NotShareable,
    errno.ETIMEDOUT: Timeout,
    errno.EBUSY: Busy,
    errno.ENOENT: InvalidArgument,  # of a call that looks for no broker: a name
    errno.ECONNREFUSED: BrokerMissing,
    errno.ECONNRESET: BrokerLost,
    errno.EPIPE: BrokerLost,
    errno.EUCLEAN: Dirty,
}


def make_error(code: int, sentence: str, seeks: bool = False) -> Error:
    """The exception for what a call of libstrew returned and said.

    seeks: it was a call that looks for a broker.
    """
    code = abs(code)
    if seeks and code == errno.ENOENT:
        return BrokerMissing(code, sentence)
    return _CLASSES.get(code, Error)(code, sentence or os.strerror(code))
