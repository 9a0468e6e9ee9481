"""What all tests need."""

import signal

# A shell starts background jobs with Ctrl-C ignored, and so would be every process that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
