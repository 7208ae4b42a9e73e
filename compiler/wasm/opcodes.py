"""Every instruction that we write or read: one table for the encoder and for the inspector.

Instructions that the device runtime switches off (garbage collection, exceptions, threads) are not in it.
"""

from typing import Final

from compiler.wasm.opcode import Opcode
from compiler.wasm.scalar_opcodes import SCALAR
from compiler.wasm.simd_opcodes import SIMD

OPCODES: Final[dict[str, Opcode]] = {opcode.name: opcode for opcode in (*SCALAR, *SIMD)}
