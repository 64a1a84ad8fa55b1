"""Ctrl-C as on a terminal: a shell's background job ignores it, and so would every test and program that it starts."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
