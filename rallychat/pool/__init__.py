"""Starts, watches and unloads engines; decides who gets a slot."""

from rallychat.pool.engine import Engine as Engine
from rallychat.pool.pool import Pool as Pool
from rallychat.pool.slots import Apart as Apart
from rallychat.pool.slots import Crowded as Crowded
from rallychat.pool.slots import Preempted as Preempted
from rallychat.pool.slots import Priority as Priority
from rallychat.pool.slots import Slot as Slot
