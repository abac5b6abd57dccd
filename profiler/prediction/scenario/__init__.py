"""A recording as a page of figures, and as a scenario of the emulator."""
