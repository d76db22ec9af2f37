"""Every message that travels between processes: commands in, answers back, events out. Pure data, no I/O and no clock.

Commands are imperative and go to the queue of the service that owns the data. Events are past tense, CloudEvents 1.0,
and outlive every process; the shapes inside them (`Session`, `Record`, `Statistics`, `Change`) are the contract's and
reach clients as they are.
"""

from shared.messages.answers import *
from shared.messages.commands import *
from shared.messages.events import *
from shared.messages.shapes import *
from shared.messages.wire import *
