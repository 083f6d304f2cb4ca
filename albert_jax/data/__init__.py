"""Makes batches from text, with numpy only."""
