"""What real processes under test are started with."""

import signal


def restore_interrupts():
    """Let a child take SIGINT, which jobs in the background of a shell and their children are started without."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
