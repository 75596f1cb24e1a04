"""Sphinx's configuration. `make docs` builds; a warning is an error."""

import sys
from pathlib import Path

from sterna import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Sterna"
author = "The Sterna authors"
copyright = "The Sterna authors"  # noqa: A001 - Sphinx's name
release = version = __version__
extensions = ["myst_parser", "from_code"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Sterna {__version__}"
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "colon_fence"]
# Links to files of the tree that are no pages of these docs are for readers of the tree.
suppress_warnings = ["myst.xref_missing"]
