"""Which semaphore, which rate: found by measuring, and proven by the same.

asked       what is searched
search      runs the experiments within a budget
thinking    predicts from what was recorded so far
space       pure: what is predicted, and in which order
predicted   pure: settings as predicted, which of them are measured, and how well that agreed
recorded    pure: the experiments so far as one recording
candidates  pure: strategies as measured, which limits to try next, which strategy has won
budget      pure: how the time is spent, and which budget suffices
answer      the setting found, its evidence, its curve, and the setting as code to paste
quotas      pure: what the servers' quotas allow
"""
