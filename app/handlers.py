"""Loads the Socket.IO handlers of an application: the module that HANDLERS names."""

from __future__ import annotations

import importlib
import inspect
import traceback

from app.errors import SettingsError
from app.sessions.socketio.server import RealtimeServer


def load_handlers(name: str, sio: RealtimeServer) -> None:
    """Let an application register its handlers.

    Raises:
        SettingsError: there is no such module, it has no `register`, or either fails.
    """
    try:
        register = getattr(importlib.import_module(name), "register", None)
        if not callable(register):
            raise SettingsError(f"HANDLERS={name}: the module has no function register(sio)")
        result = register(sio)
    except SettingsError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())
        raise SettingsError(
            f"HANDLERS={name}: {type(error).__name__}: {words} ({frame.filename}, line"
            f" {frame.lineno})"
        ) from error
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise SettingsError(
            f"HANDLERS={name}: register(sio) must be a plain function, not 'async def': it runs"
            " before the worker accepts connections"
        )
