"""A worker's layout: which boxes of which tensors make up each of its parameters."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._addresses import Addresses
from ._tensors import address


@dataclasses.dataclass(frozen=True)
class Piece:
    """An arrow from a box of a trainer's tensor to a place in a parameter.

    `shape` is the tensor's; `view` refines it (each dimension split into several, outermost
    first). The box is [start, start + extent) in the view; its element i goes to element
    offset + sum(i_k * stride[k]) of the parameter, counted from its first. Two indices never share
    an element. `cast`: convert to the parameter's dtype (between float32, float16 and bfloat16).
    """

    tensor: str
    dtype: Any  # torch or NumPy dtype, or its name
    shape: tuple[int, ...]
    view: tuple[int, ...]
    start: tuple[int, ...]
    extent: tuple[int, ...]
    offset: int
    stride: tuple[int, ...]
    cast: bool = False

    @property
    def elements(self) -> int:
        """How many elements it fills."""
        return math.prod(self.extent)


@dataclasses.dataclass
class LayoutParameter:
    """A parameter's memory and the pieces that fill it.

    names: all that its storage goes by; places: where modules keep it, each a dictionary, the key
    in it, and what was there when the layout was made: torch tensors.
    """

    tensor: Any
    pieces: list[Piece]
    names: tuple[str, ...] = ()
    lookup: Callable[[], Any] | None = None  # the parameter as the module has it now
    address: int = 0  # when the layout was made
    places: Sequence[tuple[dict[str, Any], str, Any]] = ()

    def __post_init__(self) -> None:
        self.address = self.address or address(self.tensor)

    @property
    def uncovered(self) -> int:
        """Elements that no piece fills, such as padding: updates leave them as they are."""
        return math.prod(self.tensor.shape) - sum(piece.elements for piece in self.pieces)


class _AsTheyWere:
    """Whether all parameters are the objects that they were, and lie where they did.

    Of thousands, before each update: so no step of Python's is taken for one of them.
    """

    def __init__(self, parameters: list[LayoutParameter]) -> None:
        self.count = len(parameters)
        # One by one where this layout was not recorded from a module.
        self._usable = all(one.places for one in parameters)
        self._owners: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._were = Addresses()
        for one in parameters:
            for owner, key, was in one.places:
                self._owners.append(owner)
                self._keys.append(key)
                self._were.add(was, one.address)

    def all(self) -> bool:
        """False also if only one by one can tell."""
        return self._usable and all(map(
            operator.is_, map(dict.get, self._owners, self._keys), self._were.tensors)) and \
            not self._were.ask_each()


@dataclasses.dataclass
class Layout:
    """What record_layout() found.

    Attributes:
        parameters: by name; tied names are one parameter, under the first.
        refused: names of parameters that cannot be filled rightly from the trainer's tensors, and
            why. They are not in `parameters`.
        unfilled: names of parameters that the loader never wrote: updates leave them as they are.
            A tensor may be missing in `names`, or be called otherwise there. Agent.register()
            refuses them unless the agent is `partial`.
        kept: names of buffers and of plain tensors of modules that the loader never wrote, which
            stay as they are: what is derived from weights among them is stale after an update. Let
            load_weights run the engine's post-load hook as well: they are filled then, or refused.
            With prove= plain tensors with values of their own are refused, and with reload= what
            is left here has not changed when the weights did.
        loader: names of what the engine's own loader fills, from whole tensors, after each update.
        unused: tensors that the loader put nowhere.
        proved: True once prove() has compared it with live memory.
        views: what lies in the memory of one of the parameters, by name, and is filled with it.
    """

    parameters: dict[str, LayoutParameter] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    unfilled: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)
    loader: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    proved: bool = False
    views: dict[str, LayoutParameter] = dataclasses.field(default_factory=dict)
    reloader: Any = None  # what runs that loader: _reload.Reloader
    _as_they_were: _AsTheyWere | None = dataclasses.field(default=None, repr=False, compare=False)

    def status(self) -> str:
        """ "raw 271, loader 12, refused 0, proved; unfilled 1, kept 2": what the loader never wrote
        comes last, where there is some.
        """
        proof = "proved" if self.proved else "unproved"
        left = ", ".join(f"{what} {len(names)}" for what, names in
                         (("unfilled", self.unfilled), ("kept", self.kept)) if names)
        return (f"raw {len(self.parameters)}, loader {len(self.loader)}, "
                f"refused {len(self.refused)}, {proof}{left and '; ' + left}")

    def moved(self) -> dict[str, str]:
        """Parameters that do not lie where they did when the layout was made, and how so."""
        moved = self.reloader.moved() if self.reloader else {}
        looked = self._as_they_were
        if looked is None or looked.count != len(self.parameters) + len(self.views):
            looked = self._as_they_were = _AsTheyWere([*self.parameters.values(),
                                                       *self.views.values()])
        if looked.all():
            return moved
        for name, parameter in (*self.parameters.items(), *self.views.items()):
            now = parameter.lookup() if parameter.lookup else parameter.tensor
            if now is None or address(now) != parameter.address:
                moved[name] = "is gone" if now is None else "has moved since it was registered"
        return moved

    def prove(self, tensors: Mapping[str, Any]) -> dict[str, str]:
        """Compares live memory with what an update of these values would write.

        Args:
            tensors: by name: the checkpoint that the engine has loaded, as torch tensors (see
                strew.open_checkpoint()).

        A parameter that differs by a bit (the engine repacks, scales or derives it) is moved to
        `refused`, by name; so is one whose tensors are missing. Returns those.
        """
        from ._prove import differs  # pylint: disable=import-outside-toplevel
        found = {}
        for name, parameter in self.parameters.items():
            why = differs(parameter, tensors)
            if why:
                found[name] = why
        for name, why in found.items():
            del self.parameters[name]
            self.refused[name] = why
        self.proved = True
        return found
