"""How a recorded run would have gone with other settings, and how far that can be believed (`llumnix whatif`)."""
