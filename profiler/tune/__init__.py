"""Which semaphore, which rate: found by measuring, and proven by the same.

search      pure: which limits to try, which to try again, which has won
measured    one experiment's candidates as figures
answer      what was found: the setting, its evidence, its curve
quotas      pure: what the servers' quotas allow
snippets    the setting as code to paste
driver      runs the experiments within a budget
"""
