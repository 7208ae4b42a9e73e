"""Who vouches for what: keys, both signed domains and the fleet's own certificate authority.

Bytes, keys and datetimes in, bytes out: nothing here knows a database, a broker or a clock.
"""
