"""The shipped scenarios, one TOML file each; `profiler.scenarios.schema` reads them."""
