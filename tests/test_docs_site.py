"""The documentation as a site: it builds without a warning, and a link that leads nowhere is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.parts.pages import DOCS


def build(pages: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs."""
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", str(pages), str(site)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_site_has_every_page(tmp_path: Path) -> None:
    built = build(DOCS, tmp_path)
    assert built.returncode == 0, built.stderr
    root = (tmp_path / "README.html").read_text()
    for page in DOCS.glob("*.md"):
        assert (tmp_path / page.name).with_suffix(".html").is_file()
        assert page.name == "README.md" or f'href="{page.stem}.html"' in root
    assert 'url=README.html"' in (tmp_path / "index.html").read_text()
    assert [page.name for page in tmp_path.glob("*.html") if "//cdn" in page.read_text()] == []


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/a.yaml").write_text("name: a\n")
    (tmp_path / "CHANGES.md").write_text("# Changes\n")
    for name in ("conf.py", "index.html"):
        shutil.copy(DOCS / name, tmp_path / "docs")
    page = tmp_path / "docs/page.md"
    good = "[a](README.md#pages) [b](../kept/a.yaml) [c](../kept) [d](../CHANGES.md) [e](#a-heading)"
    (tmp_path / "docs/README.md").write_text("# Pages\n\n[page](page.md)\n")
    page.write_text(f"# Page\n\n{good}\n\n## A heading\n")
    built = build(page.parent, tmp_path / "good")
    assert (built.returncode, built.stderr) == (0, "")
    broken = ["no-page.md", "README.md#no-heading", "#no-anchor", "../kept/no-file.yaml", "../no-folder", "../NONE.md"]
    page.write_text("# Page\n" + "".join(f"\n[x]({link})\n" for link in broken) + "\n![](no-picture.png)\n")
    built = build(page.parent, tmp_path / "broken")
    assert built.returncode != 0
    for link in [*broken, "no-picture.png"]:
        assert link.split("#")[-1] in built.stderr, link
