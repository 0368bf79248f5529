"""What one worker of the machine does for all of them."""
