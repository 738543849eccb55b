(* C10, a constant step: proportional rule p_(n+1) = p_n + eta (L_n - A_n), a fresh batch of scores at every step,
   chosen by anyone, any targets, any K. Pathwise, against every comparator q:

     2 eta sum_(n < N) (D_n(p_n) - D_n(q))  <=  |p_0 - q|^2 + eta^2 sum_(n < N) |A_n - L_n|^2. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk c2_monotonicity_condition.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section ConstantStep.
Variables (R : realDomainType) (E K : nat) (eta : R).
Hypotheses (KE : (K <= E)%N) (eta0 : 0 < eta).
Implicit Types (p q : 'I_E -> R).

Definition squared_distance p q : R := \sum_k (p k - q k) ^+ 2.
Definition squared_violation T (scores : 'I_T -> 'I_E -> R) (L p : 'I_E -> R) : R :=
  \sum_k ((load K scores p k)%:R - L k) ^+ 2.

Lemma one_step T (scores : 'I_T -> 'I_E -> R) L p q :
  2%:R * eta * (D K scores L p - D K scores L q) <=
  squared_distance p q - squared_distance (proportional_step K scores L eta p) q
  + eta ^+ 2 * squared_violation scores L p.
Proof.
have gap := sandwich_upper scores L KE q p.
have eta2 : 0 < 2%:R * eta by rewrite mulr_gt0 ?ltr0n.
rewrite -(ler_pmul2l eta2) in gap; apply: le_trans gap _.
rewrite le_eqVlt; apply/orP; left; apply/eqP.
rewrite /squared_distance /squared_violation !mulr_sumr -sumrB -big_split /=; apply: eq_bigr => k _.
by rewrite /proportional_step; ring.
Qed.

(* T n tokens arrive at step n, and L n are their targets. *)
Variables (T : nat -> nat) (batch : forall n, 'I_(T n) -> 'I_E -> R) (L : nat -> 'I_E -> R).

Fixpoint online_bias p n : 'I_E -> R :=
  if n is n'.+1 then proportional_step K (@batch n') (L n') eta (online_bias p n') else p.

Theorem constant_step p q N :
  2%:R * eta * (\sum_(0 <= n < N) (D K (@batch n) (L n) (online_bias p n) - D K (@batch n) (L n) q)) <=
  squared_distance p q + eta ^+ 2 * \sum_(0 <= n < N) squared_violation (@batch n) (L n) (online_bias p n).
Proof.
suff : 2%:R * eta * (\sum_(0 <= n < N) (D K (@batch n) (L n) (online_bias p n) - D K (@batch n) (L n) q)) <=
    squared_distance p q - squared_distance (online_bias p N) q
    + eta ^+ 2 * \sum_(0 <= n < N) squared_violation (@batch n) (L n) (online_bias p n).
  move/le_trans; apply; rewrite ler_add2r ler_subl_addr ler_addl.
  by apply: sumr_ge0 => k _; apply: sqr_ge0.
elim: N => [|N IH]; first by rewrite !big_geq // !mulr0 addr0 subrr.
rewrite !big_nat_recr //= [leLHS]mulrDr [eta ^+ 2 * _]mulrDr.
apply: le_trans (ler_add IH (one_step (@batch N) (L N) (online_bias p N) q)) _.
rewrite le_eqVlt; apply/orP; left; apply/eqP; rewrite [LHS]addrACA; congr (_ + _).
by rewrite addrA subrK.
Qed.

End ConstantStep.
