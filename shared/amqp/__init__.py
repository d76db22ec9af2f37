"""RabbitMQ, and the only place that imports aio_pika and aiormq; what exists on the broker is listed in `shared/topology.py`.

`bus` is the bus on it: what a process opens. `inbox` is what it consumes, over `lines`, two connections that come back by
themselves (`shared/link.py`), and `express`, a third for the short way of commands. `parking` is what an operator looks at,
on a connection of its own. `channels` is where the library is extended, so that messages cost less. `failures` says in our
words what the libraries raise, `properties` what travels beside each body.
"""
