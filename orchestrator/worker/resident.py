"""Recently used models on a device, least recently used first out, limited by bytes."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn


class ModelCache:
    """Models by a name that says what they are. What it returns is shared: copy before changing."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[str, tuple[nn.Module, int]] = OrderedDict()
        self._bytes = 0

    def get(self, name: str, load: Callable[[], nn.Module]) -> nn.Module:
        """The model, loaded if it is not here; older ones make room."""
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name][0]
        model = load()
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        self._held[name] = (model, size)
        self._bytes += size
        while self._bytes > self._limit and len(self._held) > 1:
            _, (_, freed) = self._held.popitem(last=False)
            self._bytes -= freed
        return model

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)
