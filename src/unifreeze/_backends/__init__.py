"""The backends: one for each framework, found through its entry point and loaded once the framework is. Nothing imports them."""
