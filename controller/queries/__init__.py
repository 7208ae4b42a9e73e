"""Dashboard queries: over documented views, on a connection that can only read."""
