"""The processes of a server on one machine: launcher, nursery, scheduler; who starts, watches and ends whom."""
