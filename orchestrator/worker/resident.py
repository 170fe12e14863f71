"""LRU cache of models on a device, limited by bytes."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn


class ModelCache:
    """Models by name. Returned models are shared: copy before changing."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._models: OrderedDict[str, tuple[nn.Module, int]] = OrderedDict()
        self._bytes = 0

    def get(self, name: str, load: Callable[[], nn.Module]) -> nn.Module:
        """Return the model, loaded if it is not cached; drop the least recently used ones above the limit."""
        if name in self._models:
            self._models.move_to_end(name)
            return self._models[name][0]
        model = load()
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        self._models[name] = (model, size)
        self._bytes += size
        while self._bytes > self._limit and len(self._models) > 1:
            _, (_, freed) = self._models.popitem(last=False)
            self._bytes -= freed
        return model

    def clear(self) -> None:
        """Drop all models."""
        self._models.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._models)
