"""Specs and studies that come with the package, found by name."""

from dataclasses import dataclass
from pathlib import Path

from wmarena.experiments.spec.problems import SpecError, unknown


@dataclass(frozen=True)
class Shipped:
    """A folder of YAML files; ``kind`` is what messages call one of them."""

    folder: Path
    kind: str

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    def find(self, given: str | Path) -> Path:
        """Return the file of a path, else of a name. Raises SpecError."""
        path = Path(given)
        if path.is_file():
            return path
        if str(given) in self.names():
            return self.folder / f"{given}.yaml"
        hint = unknown(path.stem, self.names(), self.kind)
        raise SpecError.of(f"expected a {self.kind}'s file or the name of a shipped one, got {str(given)!r}: {hint}")
