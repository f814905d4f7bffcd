"""What a diagnosis says: one finding a check, and all of them as text or JSON."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        status: ``ok``; ``warning``: worth a look; ``error``: will not train as meant; ``skipped``: does not apply.
        message: what was seen, in plain words, with the layer or tensor and the likely cause.
        advice: what to do about it.
        details: further lines, such as the shapes layer by layer.
        name: of the check.
    """

    status: Status
    message: str
    advice: str = ""
    details: tuple[str, ...] = ()
    name: str = ""


def ok(message: str, details: tuple[str, ...] = ()) -> Finding:
    return Finding("ok", message, details=details)


def warning(message: str, advice: str) -> Finding:
    return Finding("warning", message, advice)


def error(message: str, advice: str) -> Finding:
    return Finding("error", message, advice)


class Skip(Exception):
    """Raised by a check that does not apply; its text is the reason."""


@dataclass(frozen=True)
class Report:
    """All findings about one module and its data.

    Args:
        module: class of the LightningModule.
        data: class of the LightningDataModule.
        findings: in the order of the checks.
        seconds: how long it took.
    """

    module: str
    data: str
    findings: list[Finding]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings may be meant."""
        return not self.of("error")

    def of(self, status: Status) -> list[Finding]:
        return [f for f in self.findings if f.status == status]

    def to_json(self) -> str:
        findings = [{"name": f.name, **asdict(f)} for f in self.findings]
        whole = {"ok": self.ok, **vars(self), "findings": findings, "seconds": round(self.seconds, 2)}
        return json.dumps(whole, indent=2)

    def __str__(self) -> str:
        counts = ((len(self.of("error")), "error"), (len(self.of("warning")), "warning"))
        summary = ", ".join(f"{n or 'no'} {word}{'s' * (n != 1)}" for n, word in counts)
        summary += f", {len(self.of('ok'))} ok, {len(self.of('skipped'))} skipped"
        lines = [f"{self.module} on {self.data}: {summary} ({self.seconds:.1f} s)"]
        width = max((len(f.name) for f in self.findings), default=0)
        margin = " " * (width + 13)
        for f in self.findings:
            mark = f.status.upper() if f.status == "error" else f.status
            lines += _wrapped(f"  {mark:<8} {f.name:<{width}}  {f.message}", margin)
            lines += _wrapped(f"{margin}-> {f.advice}", margin + "   ") if f.advice else []
            lines += [f"{margin}{line}" for line in f.details]
        return "\n".join(lines)


def _wrapped(line: str, margin: str) -> list[str]:
    return textwrap.wrap(line, 120, subsequent_indent=margin, break_on_hyphens=False, drop_whitespace=True) or [line]
