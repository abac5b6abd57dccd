"""Limiters: ours, deciding which calls may run now. (A *quota* is the server's.)

limiter     `FixedLimit` (semaphore), `RateLimit` (GCRA), `Together`: state machines without a clock
adaptive    `AdaptiveLimit`: as many calls as the server takes, AIMD by epochs
refusals    reads failures and rate-limit headers; `Holdback`: Retry-After, with jitter
spec        limiters by name: `semaphore:8`, `rate:500/min,burst=20`, `adaptive`
gate        `Gate` and `Lane`: drive limiters with asyncio, first come, first served
"""
