"""Moves a live run to another box, the old one training until the new one has proved that it can.

| state         | what it does                                      | cut here, `resume` ...                              |
|---------------|---------------------------------------------------|-----------------------------------------------------|
| M0 planned    | writes the decision: prices, budget, why          | drops a plan older than ten minutes; goes on else   |
| M1 creating   | rents the new box, by one request                 | finds it by its label; rents nothing twice          |
| M2 booting    | waits until it runs                               | waits on; a box that cannot run is destroyed        |
| M3 preparing  | code, environment, guard with a short deadline    | does it again, every part looks first               |
| M4 saving     | names the newest whole checkpoint C of the old    | looks again                                         |
| M5 transfer   | brings C over, every file by its sha256           | goes on with the bytes that are missing             |
| M6 rehearse   | loads C there, measures speed, last chance for no | does it again                                       |
| M7 draining   | fences the old run, stops it with a checkpoint C2 | reads how the old ended; asks again                 |
| M8 sync       | brings C2 and the run's files over                | goes on with the bytes that are missing             |
| M9 starting   | starts the new trainer under the next epoch       | looks who runs first; the run's lock allows one     |
| M10 confirm   | waits for 20 steps, or an evaluation              | waits on; no progress puts the old box back to work |
| M11 destroy   | destroys the old box and proves it                | repeats until it is proved                          |
| M12 done      | writes what it cost and how long training stood   | writes it again                                     |
| abort         | destroys the new box alone, proved                | repeats until it is proved                          |

What holds at every moment, also after a crash at any row:

- At most one trainer of the run lives. The new one starts after the old was seen dead (M7), and an old one that comes
  back finds a newer epoch in its run directory and ends with 12.
- The old box is destroyed only after the new one has trained (M10).
- Every box is in the journal, or carries our label.
- Until M7 an abort costs the old run nothing; from M7 to M10 it goes on from C2 on the old box, one epoch later.
"""
