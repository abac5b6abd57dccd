"""Which semaphore, which rate: found by measuring, and proven by the same.

search      runs the experiments within a budget
candidates  pure: strategies as measured, which limits to try next, which strategy has won
budget      pure: how the time is spent, and which budget suffices
answer      the setting found, its evidence, its curve, and the setting as code to paste
quotas      pure: what the servers' quotas allow
"""
