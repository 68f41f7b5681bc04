"""The experiments of the Llumnix paper (OSDI'24), simulated, beside the published figures."""
