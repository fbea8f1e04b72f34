"""The server: `supervisor` holds the sockets and never computes, `worker` runs one chain in its own process."""
