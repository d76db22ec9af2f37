"""Where python-socketio and python-engineio are extended, as subclasses, and nowhere else: nothing here knows attendance.

`server` is Socket.IO: namespaces, acknowledgements; `fanout` tells many sockets of an event. `transports` opens `links`
(Engine.IO: one connection each) over `polls` or `websockets`; `outbound` is what waits for a client, and `departures` sees off
those who have gone. The same suite, `tests/contract/test_engine.py`, runs against this and against the libraries' own server.
"""
