"""From a model file to a bundle that can be signed: read, preflight, build.

Owns what a release says about its module (contract, self-test, provenance). Refuses files that a device would
refuse, in words for people. Touches no network and no keys.
"""
