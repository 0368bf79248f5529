"""The Socket.IO session layer: python-socketio over detached connections."""
