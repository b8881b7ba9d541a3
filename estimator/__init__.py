"""The mathematics: step time, stop step, speed, memory, quotes, migration. Pure: no clock, no I/O, rng passed in."""
