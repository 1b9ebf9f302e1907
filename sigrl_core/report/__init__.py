"""Pages about shard folders (dataset.html), evaluations (report.html), searches (search.html) and tags (tagging.html).

Each page is one file of HTML, CSS and inline SVG without scripts or requests, light or dark as the reader's system is.
"""
