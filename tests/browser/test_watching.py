"""What watches the pages sees what it is to see."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser


def test_faults_of_a_page_are_seen(visit, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<title>bad</title><p style='color: #ccc; background: #fff'>pale</p>"
        "<img src='http://far.invalid/far.png'><script>console.error('loud'); oops()</script>"
    )
    seen = visit(page)
    assert any("color-contrast" in fault for fault in seen.serious())
    assert any("image-alt" in fault for fault in seen.serious())
    assert seen.foreign() == ["http://far.invalid/far.png"]
    assert "loud" in seen.complaints
    assert any("oops" in complaint for complaint in seen.complaints)
    seen.complaints.clear()
    seen.requests.clear()
