(* A plan and a bias whose computed values agree: then the plan is optimal. So Coq can check the answer of any solver,
   one instance at a time; tests do so with answers of our own. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint rat.
From alflb Require Import definitions topk duality executable.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Definition matrix T E rows : 'I_T -> 'I_E -> rat := fun i k => table rows i k.
Definition vector E (f : nat -> rat) : 'I_E -> rat := fun k => f k.
Arguments matrix T E rows : clear implicits.
Arguments vector E f : clear implicits.

Definition certifies T E K (scores plan : seq (seq int)) (L p : nat -> rat) : bool :=
  run_feasible T E K L (table plan) && (run_D T E K (table scores) L p <= run_value T E (table scores) (table plan)).

Theorem certified_optimal T E K scores plan (L p : nat -> rat) : (K <= E)%N ->
  certifies T E K scores plan L p -> optimal K (matrix T E scores) (vector E L) (matrix T E plan).
Proof.
move=> KE /andP[/run_feasibleP fx no_gap].
have [|//] := no_gap_optimal (scores := matrix T E scores) (p := vector E p) KE fx.
by rewrite run_DE run_valueE.
Qed.
