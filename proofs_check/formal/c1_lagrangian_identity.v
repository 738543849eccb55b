(* C1, the Lagrangian identity: for any scores, targets, K and biases p (before) and q (after a step),

     D(q) - D(p) = sum_i b_i + <A(p) - L, q - p>,   b_i >= 0,

   b_i being what token i gains by choosing afresh at q. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section LagrangianIdentity.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (L : 'I_E -> R).
Hypothesis KE : (K <= E)%N.
Implicit Types (p q : 'I_E -> R).
Local Notation D := (D K scores L).
Local Notation A := (load K scores).
Local Notation benefit := (benefit K scores).

Theorem benefit_ge0 p q i : 0 <= benefit p q i.
Proof. by rewrite subr_ge0 top_sum_max // card_topk. Qed.

Theorem lagrangian_identity p q :
  D q - D p = \sum_i benefit p q i + \sum_k ((A p k)%:R - L k) * (q k - p k).
Proof.
rewrite /D /benefit sumrB.
have -> : \sum_k ((A p k)%:R - L k) * (q k - p k) =
    \sum_k (A p k)%:R * (q k - p k) - (\sum_k L k * q k - \sum_k L k * p k).
  by rewrite -!sumrB; apply: eq_bigr => k _; ring.
rewrite -sum_picks.
have -> : \sum_i \sum_(k in picks K scores p i) (q k - p k) =
    \sum_i \sum_(k in picks K scores p i) biased scores q i k - \sum_i top_sum K (biased scores p i).
  rewrite -sumrB; apply: eq_bigr => i _; rewrite -sumrB.
  by apply: eq_bigr => k _; rewrite /biased; ring.
ring.
Qed.

(* With steps delta_k = eps_k (L_k - A_k), as balancing rules take them. *)
Corollary lagrangian_identity_of_steps p q (eps : 'I_E -> R) :
  (forall k, q k - p k = eps k * (L k - (A p k)%:R)) ->
  D q - D p = \sum_i benefit p q i - \sum_k eps k * ((A p k)%:R - L k) ^+ 2.
Proof.
move=> step; rewrite lagrangian_identity; congr (_ + _); rewrite -sumrN; apply: eq_bigr => k _.
by rewrite step; ring.
Qed.

End LagrangianIdentity.
