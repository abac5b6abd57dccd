"""What would happen, from what was recorded: models fitted to recordings, and their simulation."""
