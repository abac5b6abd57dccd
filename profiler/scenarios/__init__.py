"""The shipped scenarios, one TOML file each; `profiler.scenario` reads them."""
