"""What the services share: the messages they exchange and the ways those travel. Imports no service."""
