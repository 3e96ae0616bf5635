"""The bridge to Ray: a process of the manager's, which alone imports Ray.

Ray ends the process of a driver 60 s after its head (GCS) has gone, and until then each call hangs; it takes
over signals, and starts 20 threads. None of that may happen to a manager. So this is a process without state:
whatever it is, the manager starts another one when it ends, and an end of file on its stdin ends it.

Parts: `connection` (to Ray, and why there is none), `machines` (which there are, and a daemon on each),
`claims`, `__main__` (the messages of `ray_protocol` on stdin and stdout). All are plain threads: a call of
Ray's blocks.
"""
