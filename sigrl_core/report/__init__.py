"""Pages about a run: what an evaluation measured (report.html), what a shard folder holds (dataset.html).

Each is one file of plain HTML, CSS and inline SVG: no scripts, no requests, light and dark by the reader's setting.
"""
