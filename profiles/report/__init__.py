"""Reports of records: HTML page, Markdown, CSV, JSON and charts. Public names are in `profiles`."""
