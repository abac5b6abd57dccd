"""Limiters: ours, deciding which calls may run now. (A *quota* is the server's.)

limiter     `FixedLimit` (semaphore), `RateLimit` (GCRA), `Together`: state machines without a clock
adaptive    `AdaptiveLimit`: as many calls as the server takes, AIMD by epochs
refusals    reads failures and Retry-After; `Holdback` waits as long, with jitter
quotas      reads rate-limit headers: a server's limits, and the windows that they are of
spec        limiters by name: `semaphore:8`, `rate:500/min,burst=20`, `adaptive`
gate        `Gate` and `Lane`: drive limiters with asyncio, first come, first served
"""
