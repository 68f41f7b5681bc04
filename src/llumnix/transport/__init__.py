"""How KV blocks move between instances: the target pulls, the source serves from threads of its own."""
