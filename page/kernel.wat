;; y = x w^T for float32 matrices that are stored row by row: x (m, k), w (n, k), y (m, n).
;;
;; 4 rows of x meet 2 rows of w at a time, which makes 8 entries of y. Four numbers at a time: each
;; of the 8 sums is four partial sums, which are added up at the end. 16 of the 22 instructions in
;; the inner loop calculate, and all that they need stays in registers.
;;
;; m must be a multiple of 4, n of 2, k of 4. x, w, y are addresses in bytes.
(module
  (import "page" "memory" (memory 1))

  (func $sum (param $s v128) (result f32)
    (f32.add
      (f32.add (f32x4.extract_lane 0 (local.get $s)) (f32x4.extract_lane 1 (local.get $s)))
      (f32.add (f32x4.extract_lane 2 (local.get $s)) (f32x4.extract_lane 3 (local.get $s)))))

  (func (export "matmul")
    (param $x i32) (param $w i32) (param $y i32) (param $m i32) (param $n i32) (param $k i32)
    (local $row i32) (local $k_bytes i32) (local $n_bytes i32) (local $i i32) (local $j i32)
    (local $x0 i32) (local $x1 i32) (local $x2 i32) (local $x3 i32) (local $end i32)
    (local $w0 i32) (local $w1 i32) (local $out i32) (local $a v128) (local $b v128) (local $v v128)
    (local $a0 v128) (local $a1 v128) (local $a2 v128) (local $a3 v128)
    (local $b0 v128) (local $b1 v128) (local $b2 v128) (local $b3 v128)
    (local.set $k_bytes (i32.shl (local.get $k) (i32.const 2)))
    (local.set $n_bytes (i32.shl (local.get $n) (i32.const 2)))

    (loop $columns ;; of y: rows j and j + 1 of w
      (local.set $x0 (local.get $x))
      (local.set $out (i32.add (local.get $y) (i32.shl (local.get $j) (i32.const 2))))
      (local.set $i (i32.const 0))

      (loop $rows ;; of y: rows i to i + 3 of x
        (local.set $end (i32.add (local.get $x0) (local.get $k_bytes)))
        (local.set $x1 (local.get $end))
        (local.set $x2 (i32.add (local.get $x1) (local.get $k_bytes)))
        (local.set $x3 (i32.add (local.get $x2) (local.get $k_bytes)))
        (local.set $w0 (local.get $w))
        (local.set $w1 (i32.add (local.get $w) (local.get $k_bytes)))
        (local.set $a0 (v128.const f32x4 0 0 0 0)) (local.set $b0 (v128.const f32x4 0 0 0 0))
        (local.set $a1 (v128.const f32x4 0 0 0 0)) (local.set $b1 (v128.const f32x4 0 0 0 0))
        (local.set $a2 (v128.const f32x4 0 0 0 0)) (local.set $b2 (v128.const f32x4 0 0 0 0))
        (local.set $a3 (v128.const f32x4 0 0 0 0)) (local.set $b3 (v128.const f32x4 0 0 0 0))

        (loop $inner
          (local.set $a (v128.load (local.get $w0)))
          (local.set $b (v128.load (local.get $w1)))
          (local.set $v (v128.load (local.get $x0)))
          (local.set $a0 (f32x4.add (local.get $a0) (f32x4.mul (local.get $a) (local.get $v))))
          (local.set $b0 (f32x4.add (local.get $b0) (f32x4.mul (local.get $b) (local.get $v))))
          (local.set $v (v128.load (local.get $x1)))
          (local.set $a1 (f32x4.add (local.get $a1) (f32x4.mul (local.get $a) (local.get $v))))
          (local.set $b1 (f32x4.add (local.get $b1) (f32x4.mul (local.get $b) (local.get $v))))
          (local.set $v (v128.load (local.get $x2)))
          (local.set $a2 (f32x4.add (local.get $a2) (f32x4.mul (local.get $a) (local.get $v))))
          (local.set $b2 (f32x4.add (local.get $b2) (f32x4.mul (local.get $b) (local.get $v))))
          (local.set $v (v128.load (local.get $x3)))
          (local.set $a3 (f32x4.add (local.get $a3) (f32x4.mul (local.get $a) (local.get $v))))
          (local.set $b3 (f32x4.add (local.get $b3) (f32x4.mul (local.get $b) (local.get $v))))
          (local.set $w0 (i32.add (local.get $w0) (i32.const 16)))
          (local.set $w1 (i32.add (local.get $w1) (i32.const 16)))
          (local.set $x1 (i32.add (local.get $x1) (i32.const 16)))
          (local.set $x2 (i32.add (local.get $x2) (i32.const 16)))
          (local.set $x3 (i32.add (local.get $x3) (i32.const 16)))
          (local.set $x0 (i32.add (local.get $x0) (i32.const 16)))
          (br_if $inner (i32.lt_u (local.get $x0) (local.get $end))))

        (local.set $row (local.get $out))
        (f32.store offset=0 (local.get $row) (call $sum (local.get $a0)))
        (f32.store offset=4 (local.get $row) (call $sum (local.get $b0)))
        (local.set $row (i32.add (local.get $row) (local.get $n_bytes)))
        (f32.store offset=0 (local.get $row) (call $sum (local.get $a1)))
        (f32.store offset=4 (local.get $row) (call $sum (local.get $b1)))
        (local.set $row (i32.add (local.get $row) (local.get $n_bytes)))
        (f32.store offset=0 (local.get $row) (call $sum (local.get $a2)))
        (f32.store offset=4 (local.get $row) (call $sum (local.get $b2)))
        (local.set $row (i32.add (local.get $row) (local.get $n_bytes)))
        (f32.store offset=0 (local.get $row) (call $sum (local.get $a3)))
        (f32.store offset=4 (local.get $row) (call $sum (local.get $b3)))
        (local.set $out (i32.add (local.get $row) (local.get $n_bytes)))
        (local.set $x0 (local.get $x3)) ;; behind row i + 3: row i + 4
        (local.set $i (i32.add (local.get $i) (i32.const 4)))
        (br_if $rows (i32.lt_u (local.get $i) (local.get $m))))

      (local.set $w (local.get $w1)) ;; behind row j + 1: row j + 2
      (local.set $j (i32.add (local.get $j) (i32.const 2)))
      (br_if $columns (i32.lt_u (local.get $j) (local.get $n))))))
