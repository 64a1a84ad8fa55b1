"""One library call: its operands, its way through the engine, and its result."""
