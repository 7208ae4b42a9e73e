;; The smallest model: y = 2x + 1, for one number.
(module
  ;; One page of 64 KiB, which cannot grow: this is the memory contract.
  (memory (export "memory") 1 1)

  ;; Input 0 lives at address 0, output 0 at address 16.
  (func (export "fleet_input") (param $index i32) (result i32) (i32.const 0))
  (func (export "fleet_output") (param $index i32) (result i32) (i32.const 16))

  (func (export "fleet_infer") (result i32)
    (f32.store (i32.const 16)
      (f32.add (f32.mul (f32.load (i32.const 0)) (f32.const 2)) (f32.const 1)))
    (i32.const 0))

  ;; What the host must know about the tensors.
  (@custom "fleet.model"
    "{\"schema\":1,\"name\":\"double\","
    "\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1]}],"
    "\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[1]}]}"))
