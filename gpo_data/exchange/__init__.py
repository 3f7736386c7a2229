"""In and out: pairs for other trainers (pairs.py, export.py), and pictures of anybody (sources.py, imported.py)."""
