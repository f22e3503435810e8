"""Every operation, written once, without sockets, threads or clocks.

An operation is a generator: it yields effects (`effects`) for a driver to execute and ends with its result.
"""
