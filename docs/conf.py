"""The documentation as a site: `make docs` writes docs/_build/html. README.md, the list of pages, is its root."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

project = html_title = "gpo"
extensions = ["myst_parser"]
root_doc = "README"
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # links such as page.md#a-heading, as on GitHub
html_theme = "furo"
html_extra_path = ["index.html"]  # a static host opens this one


def contents(app: Sphinx, page: str, source: list[str]) -> None:
    """The pages of the root's table, in its order, are the site's contents."""
    if page == app.config.root_doc:
        pages = re.findall(r"\]\(([\w-]+)\.md\)", source[0])
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", *pages, "```", ""])


def outside(app: Sphinx, page: nodes.document) -> None:
    """A folder, or a page outside docs/, is none of the site: where it exists its link becomes its name."""
    for link in list(page.findall(pending_xref)):
        target = Path(app.srcdir, link["reftarget"])
        if link["reftarget"] not in app.env.found_docs and (target.is_dir() or target.with_suffix(".md").is_file()):
            link.replace_self(link[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", contents)
    app.connect("doctree-read", outside)
