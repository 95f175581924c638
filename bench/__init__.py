"""How fast `kdlib` is, measured beside what does the same. Not tests: nothing here passes or fails by the clock."""
