"""One library call: its keys, its operands, and its result."""
