"""Result of a diagnosis: one or several findings per check, as text or JSON."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warning", "error", "skipped"]

LINE_WIDTH = 120


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Args:
        status: ``ok``; ``warning``: probably a problem; ``error``: training fails or does not do what is intended;
            ``skipped``: the check does not apply.
        message: the observation with the name of the layer or tensor, and the likely cause.
        advice: what to change.
        details: further lines, such as the shapes layer by layer.
        name: name of the check.
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
    """All findings about a module and its data.

    Args:
        module: class name of the LightningModule.
        data: class name of the LightningDataModule.
        findings: findings in the order of the checks.
        seconds: duration of the diagnosis.
    """

    module: str
    data: str
    findings: list[Finding]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings may be intended."""
        return not self.of("error")

    def of(self, status: Status) -> list[Finding]:
        """Return the findings with a status."""
        return [finding for finding in self.findings if finding.status == status]

    def to_json(self) -> str:
        """Return the report as a JSON object with ``ok``, ``module``, ``data``, ``findings`` and ``seconds``."""
        findings = [{"name": finding.name, **asdict(finding)} for finding in self.findings]
        content = {
            "ok": self.ok,
            "module": self.module,
            "data": self.data,
            "findings": findings,
            "seconds": round(self.seconds, 2),
        }
        return json.dumps(content, indent=2)

    def __str__(self) -> str:
        counts = [
            _count(len(self.of("error")), "error"),
            _count(len(self.of("warning")), "warning"),
            f"{len(self.of('ok'))} ok",
            f"{len(self.of('skipped'))} skipped",
        ]
        lines = [f"{self.module} on {self.data}: {', '.join(counts)} ({self.seconds:.1f} s)"]
        width = max((len(finding.name) for finding in self.findings), default=0)
        margin = " " * (width + 13)
        for finding in self.findings:
            mark = finding.status
            if mark == "error":
                mark = mark.upper()
            lines += _wrap(f"  {mark:<8} {finding.name:<{width}}  {finding.message}", margin)
            if finding.advice:
                lines += _wrap(f"{margin}-> {finding.advice}", margin + "   ")
            lines += [f"{margin}{line}" for line in finding.details]
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    """Return ``no errors``, ``1 error``, ``2 errors``."""
    if number == 0:
        return f"no {noun}s"
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}s"


def _wrap(line: str, margin: str) -> list[str]:
    return textwrap.wrap(line, LINE_WIDTH, subsequent_indent=margin, break_on_hyphens=False) or [line]
