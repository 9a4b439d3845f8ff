"""Values that options are kept in: named, checked, and frozen once a model uses them."""

from __future__ import annotations

import copy
from typing import Any, Dict, Mapping, Optional, TypeVar

from ipu.simulator._logging import logger
from ipu.simulator.strategies import require

Part = TypeVar("Part", bound="Freezable")


class Freezable:
    """Refuses changes while frozen. A deep copy is not frozen; a pickled one is as its original."""

    _is_frozen = False

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        """Raise AttributeError where a change of `option` is refused."""
        if self._is_frozen and option != "_is_frozen":
            change = f" ({option})" if option else ""
            raise AttributeError(
                f"Cannot change frozen Options{change}: a model or a DataLoader uses them; set options before it is "
                "made, or change a clone()"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        self.checkIsFrozen(name)
        super().__setattr__(name, value)

    def __deepcopy__(self: Part, memory: Dict[int, Any]) -> Part:
        copied = self.__class__.__new__(self.__class__)
        memory[id(self)] = copied
        for name, value in self.__dict__.items():
            copied.__dict__[name] = False if name == "_is_frozen" else copy.deepcopy(value, memory)
        return copied


class OptionsDict(Freezable):
    """Options by name, each of the type of its default; also reached as attributes and by calling.

    Args:
        default_values: the names there are, and what they start with.
    """

    def __init__(self, **default_values: Any) -> None:
        self._warnings: Dict[str, str] = {}
        self._is_frozen = False
        self._values = default_values  # the last one: from here on there are no new private attributes

    def set(self, **kwargs: Any) -> None:
        """Change options (AssertionError: no such name, or a value of another type; AttributeError: frozen)."""
        self.checkIsFrozen(", ".join(kwargs))
        for option, value in kwargs.items():
            require(option in self._values, f"there is no option {option!r}; there are {', '.join(self._values)}")
            kind = type(self._values[option])
            require(isinstance(value, kind), f"{option}={value!r} is a {type(value).__name__}; it takes {kind}")
            self._values[option] = value

    def createOrSet(self, **kwargs: Any) -> None:
        """Change options that may not be there yet. The first value decides the type."""
        self.checkIsFrozen(", ".join(kwargs))
        for option, value in kwargs.items():
            if option in self._values:
                self.set(**{option: value})
            else:
                self._values[option] = value

    def exists(self, option: str) -> bool:
        """Whether an option is set."""
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        """Take an option away; PopTorch allows it to frozen options, too."""
        self._values.pop(option, None)

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        """Merge into `other` and return it; pending warnings are given (AssertionError: a name is in both)."""
        for warning in self._warnings.values():
            logger.warning("%s", warning)
        common = sorted(set(self._values) & set(other))
        require(not common, f"Can't merge dictionaries: {', '.join(common)} is set in both")
        other.update(self._values)
        return other

    def toDict(self) -> Dict[str, Any]:
        """The options by name."""
        return self.update({})

    def _freeze(self) -> None:
        self._set_frozen(True)

    def _unfreeze(self) -> None:
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        self._is_frozen = frozen
        for part in self.__dict__.values():
            if isinstance(part, Freezable):
                part._is_frozen = frozen

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self.set(**{name: value})
            return
        known = name in self.__dict__ or name == "__class__" or "_values" not in self.__dict__
        if not known:
            raise AttributeError(f"Options have no private attribute {name!r} to set")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name.startswith("_") or name not in values:
            raise AttributeError(f"there is no option {name!r}; there are {', '.join(values)}")
        return values[name]

    def __call__(self, option: str) -> Any:
        """The value of an option."""
        return getattr(self, option)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)  # not by setattr: the state may be a frozen one

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"
