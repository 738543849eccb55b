(* C9, the recursion behind the logarithmic regret bound, given its hypotheses. Let q minimize f, dist n be the mean of
   |p_n - q|^2 and gap n the mean of f(p_n) - f(q), for steps n = 1, 2, ... with eta_n = 1 / (mu n). Projection does not
   increase distances, and strong convexity bounds the slope, so

     dist (n + 1)  <=  dist n - 2 eta_n (gap n + mu/2 dist n) + eta_n^2 G^2.

   Then the regret of N steps is at most G^2 / (2 mu) times 1 + 1/2 + ... + 1/N. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section RegretRecursion.
Variables (R : realFieldType) (mu G2 : R) (dist gap : nat -> R).
Hypotheses (mu0 : 0 < mu) (dist_ge0 : forall n, 0 <= dist n).
Definition eta n : R := (mu * n%:R)^-1.
Hypothesis step : forall n, (0 < n)%N ->
  dist n.+1 <= dist n - 2%:R * eta n * (gap n + mu / 2%:R * dist n) + eta n ^+ 2 * G2.

Definition harmonic N : R := \sum_(1 <= n < N.+1) n%:R^-1.

Lemma one_step n :
  2%:R * gap n.+1 + mu * n.+1%:R * dist n.+2 <= mu * n%:R * dist n.+1 + G2 / mu * n.+1%:R^-1.
Proof.
have n0 : 0 < n.+1%:R :> R by rewrite ltr0n.
have h := step (ltn0Sn n); rewrite -(ler_pmul2l (mulr_gt0 mu0 n0)) in h.
rewrite -ler_subr_addl; apply: le_trans h _.
rewrite /eta le_eqVlt; apply/orP; left; apply/eqP.
have n1 : n%:R + 1 != 0 :> R by rewrite -mulrSr gt_eqF.
by rewrite !mulrSr; field; rewrite n1 gt_eqF.
Qed.

Theorem logarithmic_regret N : \sum_(1 <= n < N.+1) gap n <= G2 / (2%:R * mu) * harmonic N.
Proof.
suff : 2%:R * (\sum_(1 <= n < N.+1) gap n) + mu * N%:R * dist N.+1 <= G2 / mu * harmonic N.
  move=> h; have mun : 0 <= mu * N%:R * dist N.+1 by rewrite !mulr_ge0 ?ler0n // ltW.
  have two : 0 < 2%:R :> R by rewrite ltr0n.
  rewrite -(ler_pmul2l two); have -> : 2%:R * (G2 / (2%:R * mu) * harmonic N) = G2 / mu * harmonic N.
    by field; rewrite gt_eqF.
  by apply: le_trans h; rewrite ler_addl.
rewrite /harmonic; elim: N => [|N IH]; first by rewrite !big_geq // !mulr0 mul0r addr0.
rewrite [\sum_(1 <= n < N.+2) gap n]big_nat_recr // [\sum_(1 <= n < N.+2) n%:R^-1]big_nat_recr //=.
rewrite [2%:R * _]mulrDr [leRHS]mulrDr -addrA; apply: le_trans (ler_add (lexx _) (one_step N)) _.
by rewrite addrA ler_add2r.
Qed.

End RegretRecursion.
