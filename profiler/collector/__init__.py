"""An OTLP/HTTP receiver that turns the spans of agents into records as their loops end."""
