"""The rules by which `dcache.testing.checker` judges a history, each a pure function of one key's calls.

No rule is broken by a miss, and none assumes an order that nobody promised: of calls at the same time, and of a change
in doubt.
"""
