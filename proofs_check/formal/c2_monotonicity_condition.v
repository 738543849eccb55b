(* C2, the sandwich and the monotonicity condition: for any scores, targets, K and biases p (before) and q (after),

     <A(p) - L, q - p>  <=  D(q) - D(p)  <=  <A(q) - L, q - p>,

   so D does not rise if and only if the total benefit is at most -<A(p) - L, q - p>, and surely does not if
   <A(q) - L, q - p> <= 0. The upper side is the lower one with p and q exchanged. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk c1_lagrangian_identity.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section MonotonicityCondition.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (L : 'I_E -> R).
Hypothesis KE : (K <= E)%N.
Implicit Types (p q : 'I_E -> R).
Local Notation D := (D K scores L).
Local Notation A := (load K scores).
Local Notation benefit := (benefit K scores).

Theorem sandwich_lower p q : \sum_k ((A p k)%:R - L k) * (q k - p k) <= D q - D p.
Proof. by rewrite lagrangian_identity ler_addr; apply: sumr_ge0 => i _; apply: benefit_ge0. Qed.

Theorem sandwich_upper p q : D q - D p <= \sum_k ((A q k)%:R - L k) * (q k - p k).
Proof.
rewrite -opprB ler_oppl; apply: le_trans (sandwich_lower q p).
by rewrite -sumrN le_eqVlt; apply/orP; left; apply/eqP/eq_bigr => k _; ring.
Qed.

Theorem no_rise_iff p q :
  (D q <= D p) = (\sum_i benefit p q i <= - \sum_k ((A p k)%:R - L k) * (q k - p k)).
Proof. by rewrite -[LHS]subr_le0 lagrangian_identity -ler_subr_addr sub0r. Qed.

(* With steps delta_k = eps_k (L_k - A_k), as balancing rules take them. *)
Corollary no_rise_iff_of_steps p q (eps : 'I_E -> R) :
  (forall k, q k - p k = eps k * (L k - (A p k)%:R)) ->
  (D q <= D p) = (\sum_i benefit p q i <= \sum_k eps k * ((A p k)%:R - L k) ^+ 2).
Proof. by move=> step; rewrite -[LHS]subr_le0 (lagrangian_identity_of_steps step) subr_le0. Qed.

Theorem surely_no_rise p q : \sum_k ((A q k)%:R - L k) * (q k - p k) <= 0 -> D q <= D p.
Proof. by move=> h; rewrite -subr_le0 (le_trans (sandwich_upper p q)). Qed.

End MonotonicityCondition.
