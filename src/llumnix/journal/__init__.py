"""What happened to requests and instances, and why: kept by every process, told over HTTP, explained in words."""
