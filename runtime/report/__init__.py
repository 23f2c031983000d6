"""Write HTML pages that open offline: the shell, charts, tables and pictures of every page, and the report of a run."""
