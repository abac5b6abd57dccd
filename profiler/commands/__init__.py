"""The commands of `profiler`, one module each: `add` declares its options, `main` runs it."""
