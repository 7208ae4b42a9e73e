"""`fleetctl`: what an operator types. Owns words, tables and exit codes; decides nothing about the fleet."""
