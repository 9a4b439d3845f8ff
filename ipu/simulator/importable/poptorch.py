"""What `import poptorch` finds in a process that a program on the simulator has started."""

from __future__ import annotations

from ipu.simulator.install import answer_to

answer_to("poptorch")  # puts the simulator's module in the place of this one
