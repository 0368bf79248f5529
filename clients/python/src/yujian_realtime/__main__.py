"""`python -m yujian_realtime` is the command `yujian`."""

from yujian_realtime.command.main import main

main()
