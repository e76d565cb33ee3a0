"""training: a gang of processes that train one model, the emulator of a land column."""
