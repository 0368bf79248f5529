"""A program whose clock of the day can be stepped while it runs: a library that is loaded before the C library."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
  long seconds = 0;
  FILE *file = fopen(getenv("CLOCK_SHIFT"), "r");
  if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
  return seconds;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
  int result = real(tv, zone);
  if (tv) tv->tv_sec += shift();
  return result;
}

int clock_gettime(clockid_t clock, struct timespec *ts) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, ts);
  if (clock == CLOCK_REALTIME) ts->tv_sec += shift();
  return result;
}

time_t time(time_t *where) {
  static time_t (*real)(time_t *);
  if (!real) real = dlsym(RTLD_NEXT, "time");
  time_t now = real(NULL) + shift();
  if (where) *where = now;
  return now;
}
"""


class ShiftedClock:
    """For programs that are started with `prefix` or `environ`.

    Args:
        directory: for its files.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "shift"
        self._library = directory / "shift.so"
        source = directory / "shift.c"
        source.write_text(_SOURCE)
        words = ["cc", "-shared", "-fPIC", "-o", str(self._library), str(source), "-ldl"]
        subprocess.run(words, check=True, capture_output=True)

    @property
    def environ(self) -> dict[str, Any]:
        """For the environment of a program."""
        return {"CLOCK_SHIFT": str(self._file), "LD_PRELOAD": str(self._library)}

    @property
    def prefix(self) -> list[str]:
        """Before the command of a program."""
        return ["env", *(f"{name}={value}" for name, value in self.environ.items())]

    def step(self, seconds: int) -> None:
        """Let the clock be so far ahead of the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._file)
