"""What an audit found, as data and to read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from unifreeze._finding import SEVERITIES, Finding, Severity

if TYPE_CHECKING:
    from rich.console import Group

_STYLE: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True, slots=True)
class Report:
    """What ``audit`` found. ``print`` it, or take ``to_dict()`` or ``to_json()``; in CI: ``sys.exit(not report.ok)``.

    Attributes:
        label: The model, such as ``Sequential (torch)``.
        findings: The worst first.
        checked: What was looked at, in words: the model, and what was given beside it.
    """

    label: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return self.worst in {None, "note"}

    @property
    def worst(self) -> Severity | None:
        """The worst severity, or ``None`` if nothing was found."""
        return self.findings[0].severity if self.findings else None

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes that were found, each once."""
        return tuple(dict.fromkeys(finding.code for finding in self.findings))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        """Always true: whether all is well is ``report.ok``."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data: ``model``, ``ok``, ``checked``, and ``findings`` with ``code``, ``severity``, ``paths``, ``why``, ``repair`` and ``page``."""
        found = [{**asdict(finding), "paths": list(finding.paths), "page": finding.page} for finding in self.findings]
        return {"model": self.label, "ok": self.ok, "checked": list(self.checked), "findings": found}

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns ``to_dict()`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def verdict(self) -> str:
        """The report in a sentence."""
        counts = {severity: sum(one.severity == severity for one in self.findings) for severity in SEVERITIES}
        said = ", ".join(f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items() if count)
        return f"{self.label}: {said or 'nothing found'} ({', '.join(self.checked)})"

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        lines: list[Any] = [Text(self.verdict(), style="bold green" if self.ok else "bold")]
        for one in self.findings:
            lines.append(Text.assemble((f"{one.code} {one.severity}", _STYLE[one.severity]), f"  {one.shown()}"))
            lines.append(Padding(Text(f"{_sentence(one.why)}\n{_sentence(one.repair)}"), (0, 0, 0, 4)))
        return Group(*lines)

    def __str__(self) -> str:
        from rich.console import Console

        out = StringIO()
        Console(file=out, width=120, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _sentence(words: str) -> str:
    """With a capital letter, unless it begins with code: a call, a path, an assignment."""
    first = words.split(" ", 1)[0]
    begin = first if re.search(r"[(._=]", first) or " = " in words[: len(first) + 3] else first[:1].upper() + first[1:]
    return begin + words[len(first) :] + ("" if words.endswith((".", ")")) else ".")
