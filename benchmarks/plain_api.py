"""The same call through the engine's ordinary Python interface, for comparison. Not safe, and not used by the agent."""

from collections.abc import Callable

from wasmtime import Config, Engine, Func, Instance, Memory, Module, Store


def caller(wasm: bytes, data: bytes) -> Callable[[], bytes]:
    """Return a function that writes 12 KB, calls the model under a deadline, and reads 40 bytes."""
    config = Config()
    config.epoch_interruption = True
    engine = Engine(config)
    store = Store(engine)
    store.set_epoch_deadline(1000)
    exports = Instance(store, Module(engine, wasm), []).exports(store)
    memory, infer = exports["memory"], exports["fleet_infer"]
    assert isinstance(memory, Memory)
    assert isinstance(infer, Func)

    def call() -> bytes:
        store.set_epoch_deadline(1000)
        memory.write(store, data, 0)
        infer(store)
        return bytes(memory.read(store, 15360, 15400))

    return call
