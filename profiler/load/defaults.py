"""The defaults of a load test: what `profiler compare`, the Locust files and `LoadOptions` agree on."""

STRATEGIES = ("sequential", "gathered", "semaphore:32")
"""With 20 agents a limit of 32 is felt and does not choke: it shows what a shared semaphore costs."""

USERS = 20
SECONDS = 15.0
"""Measuring time of each strategy over all blocks."""

DRAIN_SECONDS = 30.0
CALIBRATION_SECONDS = 0.5
METRICS_PORT = 9464
"""The first port that is tried for /metrics."""

LINGER_SECONDS = 6.0
"""How long /metrics stays up after the last trial for whoever scrapes it: every 5 s, and some to spare."""

STRATEGY_FORMS = (
    "sequential, gathered, semaphore:N (one for the process; @agent, @tool: one for each), "
    "semaphore:TOOL=N,…, rate:R/s or R/min[,burst=B], adaptive, eager (with --stream), "
    "or several joined by + (eager+semaphore:8)"
)
"""How strategies are named, for help texts."""

MODEL_LIMIT = "limiters of ours in front of the model: rate:500/min,burst=10+tokens:30000/min, semaphore:8"
