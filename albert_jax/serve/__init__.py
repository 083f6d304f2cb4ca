"""Models behind HTTP: batches across clients, limits, metrics, and a page. Needs the extra `[serve]`."""
