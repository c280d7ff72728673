"""The dependency audit fails on findings, and says when there is nobody to ask."""

from __future__ import annotations

from typing import Any

import dependency_audit
import pytest

FINDING = {"id": "GHSA-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
VULNERABLE = {"dependencies": [{"name": "jinja2", "version": "3.1.2", "vulns": [FINDING]}]}
CLEAN = {"dependencies": [{"name": "torch", "version": "2.14.1", "vulns": []}]}
UNKNOWN = {"dependencies": [{"name": "jinja2", "skip_reason": "Dependency not found on PyPI"}]}


@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        ([None], 0, "not done, the service of known vulnerabilities cannot be reached"),
        ([UNKNOWN], 0, "not done, the service that answers knows nothing of jinja2==3.1.2"),
        ([VULNERABLE, None], 0, "not done, the service of known vulnerabilities broke off"),
        ([VULNERABLE, CLEAN], 0, "1 packages, 0 with findings"),
        ([VULNERABLE, VULNERABLE], 1, "jinja2 3.1.2: GHSA-1, mended in 2.0"),
    ],
)
def test_findings_fail_and_an_audit_that_was_not_done_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: list[Any],
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr(dependency_audit.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(dependency_audit, "asked", lambda *_: answers.pop(0))
    assert dependency_audit.main() == code
    assert says in capsys.readouterr().out
    assert answers == []
