"""What real processes under test are started with."""

import signal


def hear_interrupts():
    """Jobs in the background of a shell are started deaf to SIGINT, and so are their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
