"""The gateway: the only process that knows Socket.IO, HTTP and tokens. It decides nothing about courses, sessions or rolls."""
