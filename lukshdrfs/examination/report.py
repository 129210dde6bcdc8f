"""What an examination found, as a report."""

from __future__ import annotations

from dataclasses import dataclass

from lukshdrfs.examination.region_map import RegionMap
from lukshdrfs.findings import Finding


@dataclass(frozen=True, slots=True)
class FrequencyTest:
    """One of the two statistics, over all regions."""

    name: str
    least_p: float
    """The smallest p-value of a region; 1 if no region was large enough."""
    least_p_offset: int | None
    """Where that region begins, in bytes."""
    total_p: float
    """The p-value of everything together."""
    failed: int
    """How many regions have a p-value below the level."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was seen of a payload."""

    size: int
    """Bytes."""
    read: int
    """Of these, bytes that were looked at; holes count as looked at."""
    findings: tuple[Finding, ...]
    tests: tuple[FrequencyTest, ...]
    level: float
    """The p-value below which a single test fails."""
    map: RegionMap

    @property
    def gives_itself_away(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)


def percent(part: int, of: int) -> str:
    """Return a share for people; never 0 % of what is there."""
    share = part / max(1, of)
    return "less than 0.01 %" if 0 < share < 1e-4 else f"{share:.2%}".replace("%", " %")
