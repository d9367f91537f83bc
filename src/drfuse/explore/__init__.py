"""A cohort, and the runs trained on it, in; a local web page out.

The server answers this machine alone, and only whoever opened the printed address (`guard`). Each page has
a file: `cohort_page`, `stays`, `one_stay` and `results`; `explanations` computes attributions in the
background, and `app` says which address shows what. Pages are plain HTML with drawings in SVG, and a script
each where one is needed; nothing comes from elsewhere.
"""

from drfuse.explore.command import explore

__all__ = ["explore"]
