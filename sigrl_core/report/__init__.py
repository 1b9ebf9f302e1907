"""The report of an evaluation: one self-contained HTML page, and the same headline as text.

The page is plain HTML, CSS and inline SVG: no scripts, no requests, light and dark by the reader's setting.
"""

from sigrl_core.report.headline import print_table
from sigrl_core.report.page import write_report

__all__ = ["print_table", "write_report"]
