"""Sphinx: the guides of this folder, and the reference of sigrl_core from its docstrings. `make docs` builds it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

project = "SigRL on Ray"
author = "the SigRL on Ray authors"
extensions = [
    "myst_parser",  # pages are Markdown
    "sphinx.ext.apidoc",  # a page for every module,
    "sphinx.ext.autodoc",  # from its docstrings,
    "sphinx.ext.napoleon",  # which have Args and Raises
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

apidoc_modules = [
    {
        "path": "../sigrl_core",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "max_depth": 2,
        "automodule_options": {"members", "undoc-members", "show-inheritance"},
    }
]
autodoc_member_order = "bysource"
autodoc_default_options = {"ignore-module-all": True}  # what a package hands on is described where it is
maximum_signature_line_length = 100  # with shapes, they are long
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # a dataclass's fields once, in its text
add_module_names = False
highlight_language = "none"  # of blocks in docstrings, mostly tables
default_role = "code"  # `name` in a docstring is code

html_theme = "furo"
html_title = project
html_theme_options = {"source_repository": "", "footer_icons": []}
html_copy_source = False

# The public `Tagger` extends the one of inference, so the short name in an annotation has two targets.
suppress_warnings = ["ref.python"]
