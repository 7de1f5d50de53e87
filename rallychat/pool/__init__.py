"""Starts, watches and unloads engines; decides who gets a slot."""

from rallychat.pool.affinity import Apart as Apart
from rallychat.pool.affinity import Crowded as Crowded
from rallychat.pool.affinity import How as How
from rallychat.pool.affinity import Preempted as Preempted
from rallychat.pool.affinity import Priority as Priority
from rallychat.pool.affinity import Slot as Slot
from rallychat.pool.engine import Engine as Engine
from rallychat.pool.pool import Pool as Pool
