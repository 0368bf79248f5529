"""How connections pass from one worker to another."""
