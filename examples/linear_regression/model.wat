;; The smallest useful model: a linear regression over four numbers,
;;
;;     y = 0.5 + 2.0*x0 - 1.5*x1 + 0.25*x2 + 3.0*x3
;;
;; A model is a WebAssembly module with four exports and no imports. It owns one memory; the host writes the inputs
;; into it, calls fleet_infer, and reads the outputs out of it.
(module
  ;; Export 1: the memory. One page is 64 KiB, the least there is. The second number is the most that the memory may
  ;; grow to: when both are the same, a device knows before it installs the model how much it will ever take.
  (memory (export "memory") 1 1)

  ;; What lies where in the memory. The addresses are ours to choose; 0 to 35 is all we need.
  ;;
  ;;      0  x        four floats, written by the host
  ;;     16  weights  four floats, below
  ;;     32  y        one float, read by the host
  ;;
  ;; A float is 32 bits, little-endian: 2.0, -1.5, 0.25 and 3.0.
  (data (i32.const 16) "\00\00\00\40" "\00\00\c0\bf" "\00\00\80\3e" "\00\00\40\40")

  ;; Export 2: where the host writes input number $index. There is one input, so the answer is the same for each.
  (func (export "fleet_input") (param $index i32) (result i32)
    (i32.const 0))

  ;; Export 3: where the host reads output number $index.
  (func (export "fleet_output") (param $index i32) (result i32)
    (i32.const 32))

  ;; Export 4: one inference. It takes nothing and returns a status: 0 is success, anything else is our own error code.
  (func (export "fleet_infer") (result i32)
    (local $offset i32)                            ;; of the element at hand, in bytes; locals start as 0
    (local $sum f32)

    (local.set $sum (f32.const 0.5))               ;; the intercept
    (loop $next                                    ;; a branch to $next comes back here
      (local.set $sum
        (f32.add
          (local.get $sum)
          (f32.mul
            (f32.load (local.get $offset))              ;; x[i]: the inputs start at 0
            (f32.load offset=16 (local.get $offset))))) ;; weight[i]: the weights start at 16
      (local.set $offset (i32.add (local.get $offset) (i32.const 4)))     ;; one float further
      (br_if $next (i32.lt_u (local.get $offset) (i32.const 16))))        ;; until all four are done

    (f32.store (i32.const 32) (local.get $sum))    ;; y
    (i32.const 0)))                                ;; success
