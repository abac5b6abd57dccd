"""Decides without running: a model fitted to a recording, and what it predicts."""
