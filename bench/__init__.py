"""The measurements behind ``make bench``: ratios, taken in one run, interleaved, and saved with their conditions.

Absolute figures depend on the machine and on what else it does; a ratio of two servers that take turns on the same
load does so far less. CPU time per connection is the figure that noise and the load generator disturb least. Run it
from the repository's root: ``python -m bench --help``.
"""
