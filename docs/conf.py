"""The documentation site: ``make docs``. Builds without a network, with warnings as errors."""

import sys
from pathlib import Path

import alflb

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "alflb"
author = "The alflb authors"
copyright = author  # no year: the same source gives the same pages
version = release = alflb.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx_design",
    "mathml",
    "docstrings",
    "experiment_pages",
    "figures",
    "generated_pages",
    "layers",
    "verdicts",
]
exclude_patterns = ["_build", "_ext"]

smartquotes_action = "qe"  # no dashes: options begin with two hyphens

html_theme = "furo"
html_title = "alflb"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"
html_theme_options = {"footer_icons": []}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_execution_show_tb = True

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_mock_imports = ["torch", "transformers"]
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Formulation", "notes")]
