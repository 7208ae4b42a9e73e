"""Code for one operation each, written through the wasm encoder."""
