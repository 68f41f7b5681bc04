"""Cost profiles: how long an engine takes for what. The model, the files of the package, and how one is fitted."""
