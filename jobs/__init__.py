"""Commands: what ``drgn-ray NAME`` and ``ray job submit -- python -m jobs.NAME`` run.  Parse, call, exit code."""
