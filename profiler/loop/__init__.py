"""The loop that is profiled, call by call, and the record that each run of it leaves."""
