"""How fast a model runs here: what runs it, in turns with its peers, and how long each of its layers takes."""
