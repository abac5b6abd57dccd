"""Which semaphore, which rate: found by measuring, and proven by the same.

search      runs the experiments within a budget
candidates  pure: strategies as measured, which limits to try next, which strategy has won
answer      the setting found, its evidence, its curve, and the setting as code to paste
quotas      pure: what the servers' quotas allow
"""
