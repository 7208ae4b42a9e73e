"""`fleetctl demo`: the whole of the project in a minute, on one machine, with nothing faked.

A broker, a controller and three agents run as processes of their own and are driven by the public commands alone; live
inference goes through each device's own API. The demo fails, with the step and the logs named, when anything is not
as it says.
"""
