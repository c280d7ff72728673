"""Known vulnerabilities of what is installed: `make audit`, a part of `make check`.

pip-audit asks PyPI's vulnerability service about every installed package. Where that cannot be
reached, or a mirror stands in its place that knows of no vulnerability, this says so in one line
and ends well: nothing was found, and nothing was looked for. Findings are an error.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KNOWN = "jinja2==3.1.2"
"""Has published vulnerabilities: a service that does not say so knows none."""
ONE_FILE = ("--no-deps", "--disable-pip", "--requirement")


def main() -> int:
    """0: no finding, or nobody to ask."""
    if importlib.util.find_spec("pip_audit") is None:
        return unaudited("pip-audit is not installed (the extra dev has it)")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requirements.txt")
        file.write_text(KNOWN + "\n")
        known = asked(*ONE_FILE, str(file))
    if known is None:
        return unaudited("the service of known vulnerabilities cannot be reached")
    if not findings(known):
        return unaudited(f"the service that answers knows nothing of {KNOWN}")
    answer = asked("--skip-editable")
    if answer is None:
        return unaudited("the service of known vulnerabilities broke off")
    found = findings(answer)
    skipped = [each["name"] for each in answer["dependencies"] if "skip_reason" in each]
    audited = len(answer["dependencies"]) - len(skipped)
    left_out = f"; not known there: {', '.join(skipped)}" if skipped else ""
    print(f"dependency audit: {audited} packages, {len(found)} with findings{left_out}")
    print("".join(f"{line}\n" for line in found), end="")
    return int(bool(found))


def asked(*words: str) -> Any:
    """pip-audit's answer; None if it got none."""
    options = ("--format", "json", "--progress-spinner", "off", "--timeout", "10", *words)
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True, check=False
    )
    try:
        return json.loads(done.stdout)
    except ValueError:
        return None


def findings(answer: Any) -> list[str]:
    """A line a package: its version, the findings, and the version that mends them."""
    return [
        f"  {each['name']} {each['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for each in answer["dependencies"]
        for vulnerability in each.get("vulns", ())
    ]


def unaudited(why: str) -> int:
    """Say that nothing was looked for."""
    print(f"dependency audit: not done, {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
