"""Which semaphore, which rate: predicted, found by measuring, and proven by the same.

asked        what is searched
search       what is measured in each stage, and which comes next
stages       what was measured in each, when one may end, what the setting promises
conclusion   from the stages to the answer
experiments  runs one after another within the budget
predictor    predicts from what was recorded so far
predictions  what the search does with that, and how well it agreed with what was measured
space        pure: what is predicted, and in which order
scores       pure: settings as predicted, and which of them are measured
recorded     pure: the experiments so far as one recording
candidates   pure: strategies as measured, which limits to try next, which strategy has won
budget       pure: how the time is spent, and which budget suffices
answer       the setting found, its evidence, its curve, and the setting as code to paste
quotas       pure: what the servers' quotas allow
"""
