"""The wire as pure functions: bytes in, values out, no asyncio."""
