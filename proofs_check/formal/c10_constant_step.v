(* C10, a constant step: proportional rule p_(n+1) = p_n + eta (L - A_n), the same scores at every step, any targets,
   any K. Pathwise, against every comparator q:

     2 eta sum_(n < N) (D(p_n) - D(q))  <=  |p_0 - q|^2 + eta^2 sum_(n < N) |A_n - L|^2. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk c2_monotonicity_condition.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section ConstantStep.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (L : 'I_E -> R) (eta : R).
Hypotheses (KE : (K <= E)%N) (eta0 : 0 < eta).
Implicit Types (p q : 'I_E -> R).
Local Notation D := (D K scores L).
Local Notation A := (load K scores).
Local Notation step := (proportional_step K scores L eta).

Definition squared_distance p q := \sum_k (p k - q k) ^+ 2.
Definition squared_violation p := \sum_k ((A p k)%:R - L k) ^+ 2.

Lemma one_step p q : 2%:R * eta * (D p - D q) <=
  squared_distance p q - squared_distance (step p) q + eta ^+ 2 * squared_violation p.
Proof.
have gap := sandwich_upper scores L KE q p.
have eta2 : 0 < 2%:R * eta by rewrite mulr_gt0 ?ltr0n.
rewrite -(ler_pmul2l eta2) in gap; apply: le_trans gap _.
rewrite le_eqVlt; apply/orP; left; apply/eqP.
rewrite /squared_distance /squared_violation !mulr_sumr -sumrB -big_split /=; apply: eq_bigr => k _.
by rewrite /proportional_step; ring.
Qed.

Theorem constant_step p q N :
  2%:R * eta * (\sum_(0 <= n < N) (D (iter n step p) - D q)) <=
  squared_distance p q + eta ^+ 2 * \sum_(0 <= n < N) squared_violation (iter n step p).
Proof.
suff : 2%:R * eta * (\sum_(0 <= n < N) (D (iter n step p) - D q)) <=
    squared_distance p q - squared_distance (iter N step p) q
    + eta ^+ 2 * \sum_(0 <= n < N) squared_violation (iter n step p).
  move/le_trans; apply; rewrite ler_add2r ler_subl_addr ler_addl.
  by apply: sumr_ge0 => k _; apply: sqr_ge0.
elim: N => [|N IH]; first by rewrite !big_geq // !mulr0 addr0 subrr.
rewrite !big_nat_recr //= [leLHS]mulrDr [eta ^+ 2 * _]mulrDr.
apply: le_trans (ler_add IH (one_step (iter N step p) q)) _.
rewrite le_eqVlt; apply/orP; left; apply/eqP; rewrite [LHS]addrACA; congr (_ + _).
by rewrite addrA subrK.
Qed.

End ConstantStep.
