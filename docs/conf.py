"""Settings of the documentation: Sphinx, numpydoc, and MyST notebooks that are executed while it is built."""

import os
import re
from importlib import import_module
from importlib.metadata import version as installed_version

from numpy.typing import ArrayLike
from sphinx.util.typing import stringify_annotation

# Kernels inherit this: notebooks run without ipywidgets, and their progress bars are text.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")

project = "probdeblend"
author = "probdeblend developers"
copyright = f"2026, {author}"
release = version = installed_version(project)

extensions = ["myst_nb", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "py:obj"
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "imported-members": True}
python_maximum_signature_line_length = 88
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False
numpydoc_validation_checks = {
    "all",
    "ES01",  # one sentence may be enough
    "EX01",  # examples are in the pages and tutorials
    "GL01",  # the summary starts on the line of the quotes
    "GL02",  # ruff checks where docstrings end
    "GL08",  # ruff finds what has no docstring
    "PR04",  # types are in the signature
    "PR08",  # a description may begin with ln or a letter
    "RT04",
    "SA01",  # no "See Also" for its own sake
    "SA04",
    "SS05",  # ruff checks the mood, and knows plural nouns
}
numpydoc_validation_exclude = {
    r"\.(Flag|Deblends)$",  # constructors of enumerations and protocols have no parameters of their own
    r"\.(Frame|Listed|PairEstimate)(\.|$)",  # named tuples list their fields
    r"\.Unknowns\.",  # methods of a vector that refinement alone calls
    r"\.(digest|describe|parse|to_dataset|from_dataset)$",  # methods that other rooms call
    r"\.Posterior\.open$",  # a function that becomes a class method
}

# Names of other libraries cannot be linked without a network; public ones of this library must resolve.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!probdeblend\b).*"),
]


def link_to_room(app, env, node, contnode):
    """Link a name to the room that makes it public, where its signature names the module that defines it."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    parts = module.split(".")
    if parts[0] != "probdeblend" or len(parts) != 3:
        return None
    room = import_module(".".join(parts[:2]))
    if name not in getattr(room, "__all__", ()):  # private to its room: no page to link to
        return contnode
    target = f"{room.__name__}.{name}"
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)


def name_arrays(app, what, name, obj, options, signature, returned):
    """Write numpy's names of arrays in signatures, not what they stand for."""
    spelled = stringify_annotation(ArrayLike, "smart")
    short = [text and text.replace(spelled, "ArrayLike") for text in (signature, returned)]
    known = r"~?numpy\.ndarray\[tuple\[~?typing\.Any, \.\.\.\], ~?numpy\.dtype\[~?([\w.]+)\]\]"
    return tuple(text and re.sub(known, _named, text) for text in short)


def _named(found):
    kind = found[1].rpartition(".")[2]
    return "NDArray" if kind == "_ScalarT" else f"NDArray[{kind}]"


def setup(app):
    """Register what Sphinx is to call."""
    app.connect("autodoc-process-signature", name_arrays)
    app.connect("missing-reference", link_to_room)


myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_sidebars = {"getting_started": []}  # a section of one page
html_sourcelink_suffix = ""
html_theme_options = {
    "logo": {"text": project},
    "show_prev_next": True,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
