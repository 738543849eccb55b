(* Definitions: what the theorems in this folder speak of, and nothing else.

   T tokens choose among E experts, K each. Token i has the score [scores i k] for expert k; the router adds the bias
   [p k] and sends the token to the K largest sums, ties to the lowest index. L is the vector of target loads.
   Numbers are elements of any ordered domain R: integers, rationals and real numbers are instances.
   tests/test_formal.py evaluates these definitions (executable.v) and holds the library against them. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ------------------------------------------------------------------ top-K *)
Section TopK.
Variables (R : realDomainType) (E : nat).
Implicit Types (v : 'I_E -> R) (j k : 'I_E).

(* k stands before j: a larger value, or the same value and a lower index. *)
Definition beats v k j := (v j < v k) || (v j == v k) && (k < j)%N.

(* How many entries stand before k. *)
Definition rank v k : nat := #|[set j | beats v j k]|.

(* The K entries of lowest rank, and S_K, their sum. *)
Definition topk (K : nat) v : {set 'I_E} := [set k | (rank v k < K)%N].
Definition top_sum (K : nat) v : R := \sum_(k in topk K v) v k.

(* max p - min p. *)
Definition spread v : R := \big[Num.max/0]_j \big[Num.max/0]_k (v j - v k).

End TopK.

(* ---------------------------------------------------------------- routing *)
Section Routing.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (L : 'I_E -> R).
Implicit Types (p q : 'I_E -> R) (i : 'I_T) (j k : 'I_E).

Definition biased p i k : R := scores i k + p k.
Definition picks p i : {set 'I_E} := topk K (biased p i).
Definition load p k : nat := #|[set i | k \in picks p i]|.

(* The dual function. *)
Definition D p : R := \sum_i top_sum K (biased p i) - \sum_k L k * p k.

(* What token i gains by choosing afresh at q instead of keeping its picks at p. *)
Definition benefit p q i : R := top_sum K (biased q i) - \sum_(k in picks p i) biased q i k.

(* Token i drops expert k and picks up expert j between p and q. *)
Definition swaps p q i k j : bool :=
  [&& k \in picks p i, k \notin picks q i, j \notin picks p i & j \in picks q i].

(* One step of each rule; Num.sg is -1, 0 or 1. *)
Definition sign_step (u : R) p k : R := p k + u * Num.sg (L k - (load p k)%:R).
Definition proportional_step (eps : R) p k : R := p k + eps * (L k - (load p k)%:R).

(* || A(p) - L ||_1. *)
Definition violation p : R := \sum_k `|(load p k)%:R - L k|.

(* The scores of the picks, summed: may exceed the optimum where the loads are not balanced. *)
Definition affinity p : R := \sum_i \sum_(k in picks p i) scores i k.

(* rho: the largest difference between two scores of one token. *)
Definition score_range : R := \big[Num.max/0]_i spread (scores i).

(* Crossing values, the tokens whose crossing value of (k, j) lies in [a, a + w], and m(w), the most such tokens. *)
Definition crossing k j i : R := scores i k - scores i j.
Definition window (a w : R) k j : {set 'I_T} := [set i | a <= crossing k j i <= a + w].
Definition multiplicity (w : R) : nat :=
  maxn 1 (\max_k \max_(j | k != j) \max_i #|window (crossing k j i) w k j|).

End Routing.

(* --------------------------------------------- the assignment problem (P) *)
Section Assignment.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (L : 'I_E -> R).
Implicit Types (x : 'I_T -> 'I_E -> R).

Definition feasible x : Prop :=
  [/\ forall i k, 0 <= x i k <= 1, forall i, \sum_k x i k = K%:R & forall k, \sum_i x i k = L k].
Definition value x : R := \sum_i \sum_k scores i k * x i k.
Definition optimal x : Prop := feasible x /\ forall y, feasible y -> value y <= value x.

End Assignment.

(* ----------------------------------------------------- equal targets K T / E *)
Definition even (R : realFieldType) (T E K : nat) (k : 'I_E) : R := (K * T)%:R / E%:R.
Arguments even R T {E} K k.

(* The band of C4, m (E - 1) - (1 - 1/E). *)
Definition sharp_band (R : realFieldType) (m E : nat) : R := m%:R * (E%:R - 1) - (1 - E%:R^-1).
