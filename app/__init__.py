"""What one worker of Yujian Presence is made of."""

__version__ = "1.0.0"
