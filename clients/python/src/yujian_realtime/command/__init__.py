"""The command `yujian`."""
