"""The fields of a config.json as a family reads them: present, of the right type, possible.

It owns the checks of single values and remembers what was read; which fields matter is the family's business.
"""

from collections.abc import Mapping
from typing import Any

from qmem.errors import UsageError

MAX_SIZE = 2**24
"""The largest size that is believed.  The largest vocabulary in use is about 2**18."""
MAX_LAYERS = 1024
"""The deepest models in use have about 130 layers."""
MAX_EXPERTS = 1024
"""The widest mixtures in use have 512 experts a layer."""
MAX_POSITIONS = 2**31
"""The longest context in use is 10 million tokens."""


class Fields:
    """A config.json being read.  ``values`` collects what was read, with defaults filled in.

    Every method raises ``UsageError``, naming the field, for a value that is missing, of another type or impossible.
    A default is that of transformers' config class.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.values: dict[str, Any] = {}

    def has(self, name: str) -> bool:
        """Whether the config holds the field, and not as null."""
        return self._config.get(name) is not None

    def size(self, name: str, *aliases: str, most: int = MAX_SIZE) -> int:
        """A whole number from 1 to ``most`` that must be there, under its name or an alias."""
        found = next((known for known in (name, *aliases) if known in self._config), None)
        if found is None:
            raise UsageError(f"config.json has no {name}", hint=f"a {self._family} model needs it")
        return self._size(name, self._config[found], most)

    def size_or(self, name: str, absent: int, *, null: int | None = None, most: int = MAX_SIZE) -> int:
        """A whole number; ``absent`` where the field is missing, ``null`` where it is null and null means something."""
        value = self._config.get(name, absent)
        return self._size(name, null if value is None else value, most)

    def size_or_null(self, name: str, absent: int | None) -> int | None:
        """A whole number from 1, or null where null means that there is none; ``absent`` where the field is missing."""
        value = self._config.get(name, absent)
        if value is None:
            self.values[name] = None
            return None
        return self._size(name, value, MAX_SIZE)

    def count_or(self, name: str, absent: int) -> int:
        """A whole number from 0; ``absent`` where the field is missing."""
        value = self._config.get(name, absent)
        if value == 0 and type(value) is int:
            self.values[name] = 0
            return 0
        return self._size(name, value, MAX_SIZE)

    def flag(self, name: str, absent: bool) -> bool:
        """True or false."""
        value = self._config.get(name, absent)
        if not isinstance(value, bool):
            raise UsageError(f"{name} in config.json is {value!r}, but must be true or false")
        self.values[name] = value
        return value

    def switch(self, name: str) -> bool:
        """True or false; missing or null means false."""
        value = bool(self.has(name) and self.flag(name, absent=False))
        self.values[name] = value
        return value

    def fraction(self, name: str, absent: float) -> float:
        """A number above 0 and at most 1."""
        value = self._config.get(name, absent)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise UsageError(f"{name} in config.json is {value!r}, but must be above 0 and at most 1")
        self.values[name] = value
        return value

    def probability(self, name: str, absent: float) -> float:
        """A number from 0 to below 1, such as that of dropout."""
        value = self._config.get(name, absent)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UsageError(f"{name} in config.json is {value!r}, but must be at least 0 and below 1")
        self.values[name] = value
        return value

    def word(self, name: str, absent: str) -> str:
        """A word, such as the name of an activation."""
        value = self._config.get(name, absent)
        if not isinstance(value, str):
            raise UsageError(f"{name} in config.json is {value!r}, but must be a word")
        self.values[name] = value
        return value

    def cap(self, name: str, absent: float | None) -> float | None:
        """A number above 0, or null where null means that nothing is capped; ``absent`` where the field is missing."""
        value = self._config.get(name, absent)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            raise UsageError(f"{name} in config.json is {value!r}, but must be a number above 0, or null")
        self.values[name] = value
        return value

    def mapping(self, *names: str) -> Mapping[str, Any]:
        """The first of several objects that is there and not empty, else an empty one."""
        for name in names:
            value = self._config.get(name)
            if value is not None and not isinstance(value, Mapping):
                raise UsageError(f"{name} in config.json is {value!r}, but must be an object or null")
            if value:
                return value
        return {}

    def layer_indices(self, name: str) -> frozenset[int]:
        """A list of layer numbers; missing or null means none."""
        value = self._config.get(name)
        value = () if value is None else value
        if not isinstance(value, list | tuple) or any(type(index) is not int for index in value):
            raise UsageError(f"{name} in config.json is {value!r}, but must be a list of layer numbers")
        self.values[name] = tuple(value)
        return frozenset(value)

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or nothing where the field is missing or null."""
        value = self._config.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or any(type(number) is not int for number in value):
            raise UsageError(f"{name} in config.json is {value!r}, but must be a list of whole numbers")
        self.values[name] = tuple(value)
        return tuple(value)

    def words(self, name: str) -> tuple[str, ...] | None:
        """A list of words, or nothing where the field is missing or null."""
        value = self._config.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or any(not isinstance(word, str) for word in value):
            raise UsageError(f"{name} in config.json is {value!r}, but must be a list of names")
        self.values[name] = tuple(value)
        return tuple(value)

    def must_divide(self, part: str, whole: str) -> None:
        """Refuse where the field ``whole``, read before, is not a multiple of ``part``."""
        n, total = self.values[part], self.values[whole]
        if total % n:
            raise UsageError(f"{whole} is {total}, which is not a multiple of {part}, {n}")

    @property
    def _family(self) -> str:
        return str(self._config["model_type"])

    def _size(self, name: str, value: Any, most: int) -> int:
        if type(value) is not int:
            raise UsageError(f"{name} in config.json is {value!r}, but must be a whole number")
        if not 1 <= value <= most:
            raise UsageError(f"{name} in config.json is {value}, but must be from 1 to {most}")
        self.values[name] = value
        return value
