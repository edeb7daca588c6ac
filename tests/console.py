"""The command line in this process, as the console script runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nsr_gym import cli


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams, with the breaks that a narrow terminal makes removed."""
        return " ".join((self.out + " " + self.err).split())


Call = Callable[..., Answer]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what runs the command with some arguments."""

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["nsr-gym", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return Answer(status, out, err)

    return run


def is_clear(answer: Answer) -> bool:
    """One message, no traceback, exit status 2."""
    lines = [line for line in answer.err.splitlines() if line.strip()]
    return (
        answer.status == 2
        and "Traceback" not in answer.text
        and len(lines) == 1
        and lines[0].startswith("error: ")
    )
