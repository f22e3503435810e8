"""Loads for a cache, and what comes of them: workloads, callers, and histograms of latency.

`dcache bench` is made of these.  They need no extra.
"""
