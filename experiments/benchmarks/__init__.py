"""What costs how much time, beside named peers in one run. The experiments measure claims; these measure seconds."""
