"""Blocks of channels along dimension 1 of a tensor, in classes that are rewritten together (union-find)."""

from typing import NamedTuple


class ChannelClass:
    """An element of a union-find structure; a class is fixed as soon as one of its elements is."""

    def __init__(self) -> None:
        self._parent: ChannelClass | None = None
        self._fixed = False

    def root(self) -> "ChannelClass":
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    def join(self, other: "ChannelClass") -> None:
        mine, theirs = self.root(), other.root()
        if mine is not theirs:
            theirs._parent = mine
            mine._fixed |= theirs._fixed

    def fix(self) -> None:
        self.root()._fixed = True

    @property
    def fixed(self) -> bool:
        return self.root()._fixed


class ChannelBlock(NamedTuple):
    """``width`` channels along dimension 1 of a tensor, ``size`` consecutive entries each."""

    channels: ChannelClass
    gain: ChannelClass
    width: int
    size: int = 1

    @property
    def entries(self) -> int:
        return self.width * self.size


Layout = tuple[ChannelBlock, ...]
"""Dimension 1 of a tensor; () where it carries no hidden channels."""


def fixed_block(width: int) -> ChannelBlock:
    """Make a block whose channels can neither be reordered nor scaled."""
    block = ChannelBlock(ChannelClass(), ChannelClass(), width)
    block.channels.fix()
    block.gain.fix()
    return block
