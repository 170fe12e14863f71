"""Files that come with the package and are found by their bare names, as specs and studies are."""

from dataclasses import dataclass
from pathlib import Path

from wmarena.experiments.spec.problems import SpecError, unknown


@dataclass(frozen=True)
class Shipped:
    """A folder of YAML files.

    Attributes:
        kind: what one of them is called: "spec".
    """

    folder: Path
    kind: str

    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    def find(self, given: str | Path) -> Path:
        """The file behind a path, else behind a name.

        Raises:
            SpecError: neither.
        """
        path = Path(given)
        if path.is_file():
            return path
        if str(given) in self.names():
            return self.folder / f"{given}.yaml"
        hint = unknown(path.stem, self.names(), self.kind)
        raise SpecError.of(f"expected a {self.kind}'s file or the name of a shipped one, got {str(given)!r}: {hint}")
