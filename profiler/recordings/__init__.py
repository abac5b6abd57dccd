"""What other programs wrote down of their agents, as records: files, spans, and what a proxy saw."""
