"""The measurements behind ``make bench``: ratios, taken in one run, interleaved, and saved with their conditions.

Absolute figures depend on the machine and on what else it does; the ratio of two servers that take turns on the same
load depends on it far less. Noise and the load generator disturb CPU time per connection least. Run it from the
repository's root: ``python -m bench --help``.
"""
