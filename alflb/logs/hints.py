"""What a user may have to say about a log that does not say it itself."""

from __future__ import annotations

from dataclasses import dataclass

from alflb.problem import check_count


@dataclass(frozen=True)
class Hints:
    """Facts beside a log; each is checked against the log where that says it too."""

    top_k: int | None = None
    num_experts: int | None = None
    batch_tokens: int | None = None
    loads: str | None = None
    """Names of the series that hold loads, a pattern with wildcards."""
    bias: str | None = None
    """Names of the series that hold biases, a pattern with wildcards."""

    def __post_init__(self) -> None:
        for name in ("top_k", "num_experts", "batch_tokens"):
            value = getattr(self, name)
            if value is not None:
                check_count(value, name)

    def experts_of(self, found: int | None, where: object) -> int:
        """E: as found in the log, or else as said; ValueError if neither, or both and different."""
        if found is None and self.num_experts is None:
            raise ValueError(
                f"{where} lists chosen experts, but not how many there are: pass num_experts (--experts); an expert "
                "that no token chose would be missed"
            )
        if found is not None and self.num_experts not in (None, found):
            raise ValueError(f"num_experts is {self.num_experts}, but {where} has {found} experts")
        return self.num_experts if found is None else found  # type: ignore[return-value]
