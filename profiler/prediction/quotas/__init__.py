"""The quotas of the model's server, and how a client tries again."""
