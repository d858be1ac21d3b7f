"""Programs, one a job: parse flags, build, call. Run as `python -m launch.NAME`."""
