"""What is asked of a cluster: arrival times, lengths, priorities; made by seeded generators or read from traces."""
